"""Folders of any system's media: nested ones, GenEval's, prompts by file, id, text or folder, and what has none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from eval.items import image_items, video_items
from eval.media import match_prompts
from eval.videos import write_webp
from otca.errors import InputError
from tests.test_videos import save_frames


def save(path, colour="white"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def listed(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def matched(items):
    return {item.name: item.prompt and item.prompt.text for item in items}


# -------------------------------------------------------------------------------------------------------------- nesting


def test_pictures_of_nested_folders_go_by_their_paths(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("10.png", "9.png", "b/deep/er/1.jpg", "b/2.PNG", ".hidden/3.png", "b/.4.png"):
        save(folder / name)
    (folder / "b" / "notes.txt").write_text("passed over")
    (folder / "empty").mkdir()
    items, orphans = image_items(folder)
    assert [item.name for item in items] == ["9.png", "10.png", "b/2.PNG", "b/deep/er/1.jpg"] and orphans == []
    assert [item.path for item in items] == [folder / item.name for item in items]
    assert len({item.key for item in items}) == 4  # though all hold the same picture
    with pytest.raises(InputError, match=r"images folder .*empty holds no image \("):
        image_items(folder / "empty")


def test_a_folder_that_links_to_one_above_is_not_entered_for_ever(tmp_path):
    save(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "other").symlink_to(tmp_path / "a", target_is_directory=True)
    items, _ = image_items(tmp_path)
    assert [item.name for item in items] == ["a/b/1.png", "other/b/1.png"]


def test_a_folder_of_frames_is_one_video_wherever_it_lies(tmp_path, video):
    (tmp_path / "wan" / "day").mkdir(parents=True)
    write_webp(tmp_path / "wan" / "day" / "a.webp", video)
    save_frames(tmp_path / "wan" / "b", video)
    save_frames(tmp_path / "c", video)
    (tmp_path / "hollow").mkdir()
    items, _ = video_items(tmp_path)
    assert [item.name for item in items] == ["c", "hollow", "wan/b", "wan/day/a.webp"]
    assert [len(item.read().frames_FCHW) for item in items if item.name != "hollow"] == [9, 9, 9]
    with pytest.raises(InputError, match="hollow holds no frame"):
        items[1].read()


# -------------------------------------------------------------------------------------------------------------- prompts


def test_genevals_folders_count_the_rows_of_its_list(tmp_path):
    """00000/samples/0000.png is of the first row; grid.png shows the samples again and is none."""
    folder = tmp_path / "outputs"
    for index in range(12):
        for sample in range(2):
            save(folder / f"{index:05d}" / "samples" / f"{sample:04d}.png")
        save(folder / f"{index:05d}" / "grid.png")
        listed(folder / f"{index:05d}" / "metadata.jsonl", [{"prompt": f"a photo of {index} cats"}])
    rows = [{"tag": "counting", "prompt": f"a photo of {index} cats"} for index in range(12)]
    items, orphans = image_items(folder, listed(tmp_path / "evaluation_metadata.jsonl", rows))
    assert orphans == [] and len(items) == 24
    for item in items:
        assert item.prompt.text == f"a photo of {int(item.name[:5])} cats"
    with pytest.raises(InputError, match=r"24 images have no prompt"):  # ids of one's own are not row numbers
        image_items(folder, listed(tmp_path / "own.jsonl", [{"id": "x", "prompt": "a cat"}]))
    ids = [{"id": f"{index:05d}", "prompt": f"prompt {index}"} for index in range(12)]
    items, _ = image_items(folder, listed(tmp_path / "ids.jsonl", ids))
    assert {item.prompt.text for item in items if item.name.startswith("00007/")} == {"prompt 7"}


def test_a_folder_tells_the_prompt_before_the_name_does(tmp_path):
    for name in ("000001/000002.png", "a red cube/0.png", "model/000002_3.png", "model/by path.png", "model/x/a dog-4.png"):
        save(tmp_path / "p" / name)
    rows = [{"prompt": "a dog"}, {"prompt": "a red cube"}, {"prompt": "named", "file": "model/by path.png"}]
    items, orphans = image_items(tmp_path / "p", listed(tmp_path / "list.jsonl", rows))
    assert orphans == [] and matched(items) == {
        "000001/000002.png": "a dog",
        "a red cube/0.png": "a red cube",
        "model/000002_3.png": "a red cube",
        "model/by path.png": "named",
        "model/x/a dog-4.png": "a dog",
    }


def test_what_has_no_prompt_is_left_out_and_named(tmp_path):
    for name in ("a_0.png", "b.png", "sub/stray.png", "stray.png"):
        save(tmp_path / "p" / name)
    prompts = listed(tmp_path / "list.jsonl", [{"id": "a", "prompt": "a cube"}, {"id": "b", "prompt": "a ball"}])
    items, orphans = image_items(tmp_path / "p", prompts)
    assert matched(items) == {"a_0.png": "a cube", "b.png": "a ball"} and orphans == ["stray.png", "sub/stray.png"]
    with pytest.raises(InputError, match=r"2 images have no prompt in .*list\.jsonl, the first is stray\.png"):
        image_items(tmp_path / "p", prompts, strict=True)
    with pytest.raises(InputError, match=r"2 images have no prompt in .*, the first is x\.png"):
        match_prompts(["x.png", "y.png"], prompts, "images")
    assert [p and p.id for p in match_prompts(["x.png", "a.png"], prompts, "images")] == [None, "a"]
