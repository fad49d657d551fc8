"""Folders of any system's media: nested ones, GenEval's, prompts by file, id, text or folder, and what has none."""

from __future__ import annotations

import json
import os
import unicodedata

import pytest
from PIL import Image

from eval.items import find_items, match_prompts
from eval.video_writers import write_webp
from otca.errors import InputError
from tests.test_media import film, save_frames


def save(path, colour="white"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def listed(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def matched(names, path):
    found = match_prompts(names, path, "images")
    return {name: found[name].text if name in found else None for name in names}


@pytest.fixture
def rows(tmp_path):
    """A list whose prompts go by these numbers."""
    return listed(tmp_path / "list.jsonl", [{"prompt": text} for text in ("a dog", "a red cube", "a cup")])


def test_pictures_of_nested_folders_go_by_their_paths(tmp_path):
    folder = tmp_path / "pictures"
    names = ["9.png", "10.png", "b/2.PNG", "b/deep/er/1.jpg"]
    for name in (*names, ".hidden/3.png", "b/.4.png"):
        save(folder / name)
    for name in ("b/notes.txt", "b/6.heic", "5.mp4"):
        (folder / name).write_text("passed over")
    (folder / "up").symlink_to(folder, target_is_directory=True)  # not entered for ever
    (folder / "empty").mkdir()
    path = listed(tmp_path / "list.jsonl", [{"prompt": name, "file": name} for name in names])
    found = find_items(folder, True, path)
    assert [item.name for item in found.items] == names and not found.orphans and found.unread == ["5.mp4", "b/6.heic"]
    assert [item.path for item in found.items] == [folder / name for name in names]
    assert len({item.key for item in found.items}) == 4  # though all hold the same picture
    with pytest.raises(InputError, match=r"2 not read, 5.mp4; convert, move"):
        find_items(folder, True, path, strict=True)
    with pytest.raises(InputError, match=r"images folder .*empty holds none that is read \("):
        find_items(folder / "empty", True, path)


def test_videos_are_the_items_where_there_are_any(tmp_path, video):
    """Folders of frames are videos wherever they lie; a picture beside videos is named; a file or a folder of frames is one."""
    folder = tmp_path / "in"
    (folder / "wan" / "day").mkdir(parents=True)
    write_webp(folder / "wan/day/a.webp", video)
    film(folder / "wan/day/e.webm", video, "libvpx-vp9")
    save(folder / "wan/day/grid.png")
    save_frames(folder / "wan/b", video, "webp")
    save_frames(folder / "c", video)
    (folder / "hollow").mkdir()
    names = ["c", "hollow", "wan/b", "wan/day/a.webp", "wan/day/e.webm"]
    path = listed(tmp_path / "list.jsonl", [{"prompt": name, "file": name} for name in names])
    found = find_items(folder, False, path)
    assert [item.name for item in found.items] == names and found.unread == ["wan/day/grid.png"]
    assert [len(item.read().frames_FCHW) for item in found.items if item.name != "hollow"] == [9] * 4
    with pytest.raises(InputError, match="hollow holds no frame"):
        found.items[1].read()
    for place in ("wan/day/a.webp", "c"):
        one = listed(tmp_path / "one.jsonl", [{"prompt": "it", "id": place.split("/")[-1].partition(".")[0]}])
        (item,) = find_items(folder / place, False, one).items
        assert len(item.read().frames_FCHW) == 9


def test_files_whose_names_are_no_text_are_refused(tmp_path):
    save(tmp_path / "in/a.png")
    os.rename(tmp_path / "in/a.png", os.fsencode(tmp_path / "in") + b"/a\xff.png")
    with pytest.raises(InputError, match=r"the name 'a\\udcff.png' is not UTF-8"):
        find_items(tmp_path / "in", True, tmp_path / "absent.txt")


def test_genevals_folders_count_the_rows_of_its_list(tmp_path):
    """00000/samples/0000.png is of the first row; grid.png shows the samples again and is none."""
    folder = tmp_path / "outputs"
    for index in range(12):
        for sample in range(2):
            save(folder / f"{index:05d}" / "samples" / f"{sample:04d}.png")
        save(folder / f"{index:05d}" / "grid.png")
    rows = [{"tag": "counting", "prompt": f"a photo of {index} cats"} for index in range(12)]
    found = find_items(folder, True, listed(tmp_path / "evaluation_metadata.jsonl", rows), strict=True)
    assert len(found.items) == 24
    for item in found.items:
        assert item.prompt.text == f"a photo of {int(item.name[:5])} cats"
    ids = [{"id": f"{index:05d}", "prompt": f"prompt {index}"} for index in range(12)]
    assert matched(["00007/samples/0001.png"], listed(tmp_path / "ids.jsonl", ids)) == {"00007/samples/0001.png": "prompt 7"}


@pytest.mark.parametrize(
    "right",
    [
        {"000001/0002.png": "a dog", "a red cube/0.png": "a red cube", "model/000002_3.png": "a red cube"},
        {"000000.png": "a dog", "000002.png": "a cup"},  # counted from 0, as 0 is there
        {"2.png": "a red cube", "00003_1.png": "a cup"},
        {"a dog_000000.png": "a dog", "x/a cup-4.mp4": "a cup", "other.png": None},
    ],
)
def test_names_tell_the_row_or_the_text(rows, right):
    assert matched(list(right), rows) == right


def test_numbers_that_can_be_read_in_two_ways_are_refused(rows):
    with pytest.raises(InputError, match="3 rows without ids, and files are numbered from 0 to 3"):
        matched([f"{number:06d}.png" for number in range(4)], rows)


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", '{{"Id": "{}", "prompt": "{}"}}'), ("a.csv", '"{}","{}"')])
def test_ids_that_look_like_numbers_of_rows_are_ids(tmp_path, name, line):
    """000000.png is then of none, and 000001.png of the first row, not of the second."""
    rows = ["ID,prompt"] * (name == "a.csv") + [line.format(f"{number:06d}", number) for number in (1, 2)]
    (tmp_path / name).write_text("\n".join(rows))
    assert matched(["000000.png", "000001.png"], tmp_path / name) == {"000000.png": None, "000001.png": "1"}


@pytest.mark.parametrize("column", ["file", "file_name", "image", "image_path"])
@pytest.mark.parametrize("name", ["left.png", "in/left.png", "/data/in/left.png"])
def test_columns_that_name_files(tmp_path, column, name):
    path = listed(tmp_path / "list.jsonl", [{column: name, "text": "a cat"}, {column: "in/right.png", "text": "a dog"}])
    assert matched(["in/left.png", "in/right.png"], path) == {"in/left.png": "a cat", "in/right.png": "a dog"}
    with pytest.raises(InputError, match="1 files of its rows are not there, the first is in/right.png"):
        matched(["in/left.png"], path)


def test_lists_of_other_benchmarks(tmp_path):
    """HPDv2's by style, numbered from 0 in each; VBench's own of texts by file; names in either Unicode form."""
    styles, files = tmp_path / "styles.json", tmp_path / "files.json"
    styles.write_text(json.dumps({"anime": ["a", "b"], "photo": ["c", "d"]}))
    assert matched(["anime/00000.jpg", "photo/00001.jpg"], styles) == {"anime/00000.jpg": "a", "photo/00001.jpg": "d"}
    assert matched(["photo/00001.jpg"], styles) == {"photo/00001.jpg": "d"}  # also where 0 is missing
    assert matched(["photo/1.jpg", "photo/2.jpg"], styles) == {"photo/1.jpg": "c", "photo/2.jpg": "d"}
    files.write_text(json.dumps({"x/clip.mp4": "a café", "two.mp4": "b"}))
    assert matched(["clip.mp4", "two.mp4"], files) == {"clip.mp4": "a café", "two.mp4": "b"}
    name = unicodedata.normalize("NFD", "a café-0.mp4")
    assert matched([name], listed(tmp_path / "list.jsonl", [{"prompt": "a café"}])) == {name: "a café"}


def test_rows_that_contradict_each_other_are_refused(tmp_path):
    for key in ("id", "file"):
        path = listed(tmp_path / "list.jsonl", [{key: "x.png", "prompt": text} for text in ("a", "a", "b")])
        with pytest.raises(InputError, match=f"rows 1 and 3 both have the {key} 'x.png', of different texts"):
            matched(["x.png"], path)


def test_a_name_that_two_ids_own_is_refused_and_rows_of_other_files_count_for_none(tmp_path):
    path = listed(tmp_path / "ids.jsonl", [{"id": "cat", "prompt": "a cat"}, {"id": "cat_0", "prompt": "a cat, lying"}])
    with pytest.raises(InputError, match="cat_0.png may be of 'cat_0', or a sample of 'cat'"):
        matched(["cat.png", "cat_0.png"], path)
    path = listed(tmp_path / "files.jsonl", [{"file": "x.png", "prompt": "a"}, {"file": "y.png", "prompt": "b"}])
    with pytest.raises(InputError, match="none of 2 images has a prompt"):
        matched(["1.png", "2.png"], path)


@pytest.mark.parametrize("row", [{"prompt": "a {}"}, {"id": "{}", "prompt": "a {}"}], ids=["numbers", "ids"])
def test_a_folder_and_a_file_of_different_rows_are_refused(tmp_path, row):
    """Unless the folders tell all rows and the files' names do not: then these count the samples."""
    own = [{key: text.format(f"{number:06d}") for key, text in row.items()} for number in (1, 2)]
    path = listed(tmp_path / "list.jsonl", own)
    for names in (["000001/000002.png"], [f"{folder:06d}/{file:06d}.png" for folder in (1, 2) for file in (1, 2)]):
        with pytest.raises(InputError, match=r"000001/000002.png may be of .*1'?, by its folder, or of .*2'?, by its own name"):
            matched(names, path)
    samples = {"000001/000001.png": "a 000001", "000002/000001.png": "a 000002"}
    assert matched(list(samples), path) == samples


def test_what_has_no_prompt_is_left_out_and_named(tmp_path):
    for name in ("a_0.png", "b.png", "sub/stray.png", "stray.png"):
        save(tmp_path / "p" / name)
    prompts = listed(tmp_path / "list.jsonl", [{"id": "a", "prompt": "a cube"}, {"id": "b", "prompt": "a ball"}])
    found = find_items(tmp_path / "p", True, prompts)
    assert [item.name for item in found.items] == ["a_0.png", "b.png"] and found.orphans == ["stray.png", "sub/stray.png"]
    with pytest.raises(InputError, match=r"2 without a prompt in .*list\.jsonl, stray\.png"):
        find_items(tmp_path / "p", True, prompts, strict=True)
    with pytest.raises(InputError, match=r"none of 1 images has a prompt in .*is x\.png; looked for in the columns file"):
        matched(["x.png"], prompts)
