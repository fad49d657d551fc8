"""Reading and writing videos: round trips, rates, damaged and oversized files."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from eval import videos
from eval.videos import natural_key, read_video, write_mp4, write_webp
from otca.errors import InputError


def pictures(video: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(f) for f in (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()]


def save_gif(path, video, durations) -> None:
    first, *rest = pictures(video)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def save_frames(folder, video, ending="png") -> None:
    folder.mkdir()
    for index, picture in enumerate(pictures(video)):
        picture.save(folder / f"frame{index}.{ending}")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("fps", [8, 24, 23.976])
def test_mp4_round_trip(tmp_path, video, fps):
    write_mp4(tmp_path / "a.mp4", video, fps)
    read = read_video(tmp_path / "a.mp4")
    assert read.frames_FCHW.shape == video.shape and read.frames_FCHW.dtype == torch.float32
    assert read.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(read.frames_FCHW, video) > 30
    gray = video.mean(1, keepdim=True).expand_as(video)
    write_mp4(tmp_path / "gray.mp4", gray, fps)
    assert psnr(read_video(tmp_path / "gray.mp4").frames_FCHW, gray) > 40  # what is lost is the halved chroma


def test_mp4_keeps_colours_and_bytes(tmp_path):
    color = torch.tensor([200, 40, 90]).view(1, 3, 1, 1) / 255
    flat = color.expand(4, 3, 32, 48)
    write_mp4(tmp_path / "a.mp4", flat)
    write_mp4(tmp_path / "b.mp4", flat)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (read_video(tmp_path / "a.mp4").frames_FCHW - flat).abs().max() <= 3 / 255


def test_mp4_plays_in_browsers(tmp_path, video):
    import av

    write_mp4(tmp_path / "a.mp4", video)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [8, 24, 30])
@pytest.mark.parametrize("kind", ["moving", "frozen", "pausing"])
def test_lossless_webp_is_exact_even_where_frames_repeat(tmp_path, video, fps, kind):
    order = {"moving": range(9), "frozen": [0] * 9, "pausing": [0, 0, 0, 1, 1, 2, 2, 2, 2]}[kind]
    chosen = video[list(order)]
    write_webp(tmp_path / "a.webp", chosen, fps)
    read = read_video(tmp_path / "a.webp")
    assert torch.equal(read.frames_FCHW, chosen) and read.fps == fps


def test_lossy_webp_is_close(tmp_path, video):
    write_webp(tmp_path / "a.webp", video, lossless=False)
    assert psnr(read_video(tmp_path / "a.webp").frames_FCHW, video) > 30


def test_webp_of_others_is_read(tmp_path, video):
    first, *rest = pictures(video)
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, duration=50, lossless=True)
    read = read_video(tmp_path / "a.webp")
    assert torch.equal(read.frames_FCHW, video) and read.fps == pytest.approx(20)


def test_gif_is_exact_where_256_colours_suffice(tmp_path, video):
    few = (video > 0.5).float()
    save_gif(tmp_path / "a.gif", few, [120, 130] * 4 + [120])
    read = read_video(tmp_path / "a.gif")
    assert torch.equal(read.frames_FCHW, few) and read.fps == pytest.approx(9000 / 1120)


def test_a_gif_is_read_as_shown(tmp_path, video):
    """A picture shown three times as long is three frames; one that stands alone is frozen at the default rate."""
    few = (video > 0.5).float()
    save_gif(tmp_path / "a.gif", few[[0, 1, 1, 1, 2]], 100)
    read = read_video(tmp_path / "a.gif")
    assert torch.equal(read.frames_FCHW, few[[0, 1, 1, 1, 2]]) and read.fps == 10
    save_gif(tmp_path / "still.gif", few[[0] * 8], 125)
    assert torch.equal(read_video(tmp_path / "still.gif", default_fps=8).frames_FCHW, few[[0] * 8])


def test_frames_are_exact_in_natural_order(tmp_path, video):
    long = torch.cat([video, video.flip(0)])
    save_frames(tmp_path / "clip", long)
    (tmp_path / "clip" / "notes.txt").write_text("no frame")
    (tmp_path / "clip" / "._frame1.png").write_bytes(b"no frame either")
    read = read_video(tmp_path / "clip", default_fps=5)
    assert torch.equal(read.frames_FCHW, long) and read.fps == 5
    save_frames(tmp_path / "jpeg", video, "jpg")
    assert psnr(read_video(tmp_path / "jpeg").frames_FCHW, video) > 25


def test_natural_order():
    names = ["b1", "a10", "a2", "a", "A3", "2", "10"]
    assert sorted(names, key=natural_key) == ["2", "10", "a", "a2", "A3", "a10", "b1"]


# --------------------------------------------------------------------------------------------------------------- damage


def make_bad(folder, video) -> dict[str, str]:
    """Files that cannot be read, with a word of the error each must cause."""
    write_mp4(folder / "whole.mp4", video)
    data = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    (folder / "stub.mp4").write_bytes(data[:20])
    (folder / "headless.mp4").write_bytes(data[data.index(b"mdat") - 4 :])
    (folder / "whole.mp4").unlink()
    (folder / "nothing.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is a text\n" * 40)
    (folder / "zero.gif").write_bytes(b"GIF89a\x10\x00\x10\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00;")
    buffer = io.BytesIO()
    save_gif(folder / "whole.gif", video, 120)
    (folder / "cut.gif").write_bytes((folder / "whole.gif").read_bytes()[:-200])
    (folder / "whole.gif").unlink()
    first, *rest = pictures(video)
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=125)
    (folder / "cut.webp").write_bytes(buffer.getvalue()[:-100])
    first.save(folder / "still.webp")
    (folder / "hollow").mkdir()
    save_frames(folder / "mixed", video)
    first.resize((32, 32)).save(folder / "mixed" / "frame3.png")
    return {
        "cut.mp4": "cut short",
        "stub.mp4": "cut short",
        "headless.mp4": "cannot be read",
        "nothing.mp4": "empty",
        "text.mp4": "cannot be read",
        "zero.gif": "cannot be read",
        "cut.gif": "cut short",
        "cut.webp": "cut short",
        "still.webp": "1 frame",
        "hollow": "no frame",
        "mixed": "different sizes",
    }


def test_bad_files_are_named(tmp_path, video):
    for name, word in make_bad(tmp_path, video).items():
        if name != "still.webp":  # one frame can be read, though not scored
            with pytest.raises(InputError, match=word) as caught:
                read_video(tmp_path / name)
            assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"absent\.mp4 not found"):
        read_video(tmp_path / "absent.mp4")
    (tmp_path / "clip.avi").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="'.avi'; convert it"):
        read_video(tmp_path / "clip.avi")


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a.gif", "frames"])
@pytest.mark.parametrize(
    ("limit", "value", "word"),
    [
        ("MAX_PIXELS", 1000, "more than 1000"),
        ("MAX_FRAMES", 5, "limits are 5 frames"),
        ("MAX_VIDEO_PIXELS", 20_000, "20000 pixels"),
    ],
)
def test_bombs_are_refused(tmp_path, video, monkeypatch, name, limit, value, word):
    if name == "frames":
        save_frames(tmp_path / name, video)
    elif name == "a.gif":
        save_gif(tmp_path / name, video, 100)
    else:
        (write_mp4 if name == "a.mp4" else write_webp)(tmp_path / name, video)
    monkeypatch.setattr(videos, limit, value)
    with pytest.raises(InputError, match=word):
        read_video(tmp_path / name)


def test_a_note_of_endless_frames_is_refused(tmp_path, video):
    exif = Image.Exif()
    exif[0x010E] = json.dumps({"frames": 10**12, "fps": 8})
    first, *rest = pictures(video)
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, duration=100, exif=exif)
    with pytest.raises(InputError, match="limits are"):
        read_video(tmp_path / "a.webp")


def test_writers_refuse_what_they_cannot_hold(tmp_path, video):
    with pytest.raises(InputError, match="even sides, got 63×64"):
        write_mp4(tmp_path / "a.mp4", video[..., :63])
    for write, path in ((write_mp4, tmp_path / "a.mp4"), (write_webp, tmp_path / "a.webp")):
        with pytest.raises(InputError, match="lie in"):
            write(path, video * 2)
        assert not path.exists()
