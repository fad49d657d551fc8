"""Reading and writing media: round trips, rates, turns, and files of others that are damaged, foreign or too large."""

from __future__ import annotations

import io
import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from eval import media
from eval.media import read_picture, read_video
from eval.video_writers import write_mp4, write_webp
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


def film(path, video, codec="libx264", milliseconds=None, **options) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *video.shape[2:], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if milliseconds else 8)
        for picture, time in zip(pictures(video), milliseconds or range(0, 125 * len(video), 125)):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


@pytest.mark.parametrize("fps", [8, 23.976])
def test_mp4_round_trip(tmp_path, video, fps):
    write_mp4(tmp_path / "a.mp4", video, fps)
    read = read_video(tmp_path / "a.mp4")
    assert read.frames_FCHW.shape == video.shape and read.frames_FCHW.dtype == torch.float32
    assert read.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(read.frames_FCHW, video) > 30


@pytest.mark.parametrize(("kind", "fps"), [("moving", 30), ("frozen", 8), ("pausing", 30)])
def test_lossless_webp_is_exact_even_where_frames_repeat(tmp_path, video, fps, kind):
    chosen = video[{"moving": list(range(9)), "frozen": [0] * 9, "pausing": [0, 0, 0, 1, 1, 2, 2, 2, 2]}[kind]]
    write_webp(tmp_path / "a.webp", chosen, fps)
    read = read_video(tmp_path / "a.webp")
    assert torch.equal(read.frames_FCHW, chosen) and read.fps == fps


def test_a_gif_is_read_as_shown(tmp_path, video):
    """A picture shown three times as long is three frames; one that stands alone is frozen at the default rate."""
    few = (video > 0.5).float()  # of few colours, which a GIF holds exactly
    save_gif(tmp_path / "uneven.gif", few, [120, 130] * 4 + [120])
    read = read_video(tmp_path / "uneven.gif")
    assert torch.equal(read.frames_FCHW, few) and read.fps == pytest.approx(9000 / 1120)
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


@pytest.mark.parametrize(
    "name, codec", [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "libx264")]
)
def test_other_containers_are_read(tmp_path, video, name, codec):
    film(tmp_path / name, video.mean(1, keepdim=True).expand_as(video), codec)
    read = read_video(tmp_path / name)
    assert read.frames_FCHW.shape == video.shape and read.fps == 8 and psnr(read.frames_FCHW, video.mean(1, keepdim=True)) > 25


@pytest.mark.parametrize("ending", ["webp", "bmp", "tiff", "avif"])
def test_frames_of_any_picture_format(tmp_path, video, ending):
    save_frames(tmp_path / "clip", video, ending)
    assert psnr(read_video(tmp_path / "clip").frames_FCHW, video) > 25


TURNS = {3: (-1, 0, 0, -1), 6: (0, 1, -1, 0), 8: (0, -1, 1, 0), 2: (-1, 0, 0, 1), 5: (0, 1, 1, 0)}
"""EXIF orientation → a, b, c, d of the display matrix of the same turn."""


@pytest.mark.parametrize("orientation", TURNS)
def test_what_is_stored_sideways_is_read_as_shown(tmp_path, orientation):
    """Pillow's own transposition is the right one, for pictures and videos; ``upright=False`` keeps what is stored."""
    scene = torch.zeros(3, 3, 32, 48)
    scene[..., :16, :24] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pictures(scene)[0]
    stored.save(tmp_path / "a.png", exif=exif)
    shown = read_picture(tmp_path / "a.png").frames_FCHW
    assert torch.equal(read_picture(tmp_path / "a.png", upright=False).frames_FCHW, scene[:1])
    assert not torch.equal(shown[..., :16, :16], scene[:1, :, :16, :16]) or orientation == 5
    write_mp4(tmp_path / "a.mp4", scene)
    data = (tmp_path / "a.mp4").read_bytes()
    place = data.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (65536 * value for value in TURNS[orientation])
    (tmp_path / "a.mp4").write_bytes(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])
    assert psnr(read_video(tmp_path / "a.mp4").frames_FCHW, shown) > 25
    assert psnr(read_video(tmp_path / "a.mp4", upright=False).frames_FCHW, scene) > 25


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
    film(folder / "whole.mkv", video)
    film(folder / "whole.avi", video, "mpeg4")
    for name in ("mkv", "avi"):
        (folder / f"cut.{name}").write_bytes((folder / f"whole.{name}").read_bytes()[:-300])
        (folder / f"whole.{name}").unlink()
    return {
        "cut.mkv": "cut short",
        "cut.avi": "cut short",
        "cut.mp4": "cut short",
        "stub.mp4": "cannot be read",
        "headless.mp4": "cannot be read",
        "nothing.mp4": "cannot be read",
        "text.mp4": "cannot be read",
        "zero.gif": "cannot be read",
        "cut.gif": "cannot be read",
        "cut.webp": "cannot be read",
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
    with pytest.raises(InputError, match=r"absent\.mp4 cannot be read \(No such file"):
        read_video(tmp_path / "absent.mp4")
    (tmp_path / "clip.heic").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="'.heic'; convert it"):
        read_video(tmp_path / "clip.heic")


@pytest.mark.parametrize(
    ("limit", "value", "word"),
    [
        ("MAX_PIXELS", 1000, "more than 1000"),
        ("MAX_FRAMES", 5, "limits are 5 frames"),
        ("MAX_VIDEO_PIXELS", 20_000, "20000 pixels"),
    ],
)
def test_bombs_are_refused(tmp_path, video, monkeypatch, limit, value, word):
    save_frames(tmp_path / "frames", video)
    save_gif(tmp_path / "a.gif", video, 100)
    write_mp4(tmp_path / "a.mp4", video)
    write_webp(tmp_path / "a.webp", video)
    monkeypatch.setattr(media, limit, value)
    for name in ("frames", "a.gif", "a.mp4", "a.webp"):
        with pytest.raises(InputError, match=word):
            read_video(tmp_path / name)


def test_writers_refuse_what_they_cannot_hold(tmp_path, video):
    with pytest.raises(InputError, match="even sides, got 63×64"):
        write_mp4(tmp_path / "a.mp4", video[..., :63])
    for write, path in ((write_mp4, tmp_path / "a.mp4"), (write_webp, tmp_path / "a.webp")):
        with pytest.raises(InputError, match="lie in"):
            write(path, video * 2)
        assert not path.exists()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, more: bytes = b"") -> bytes:
    """A PNG of a few bytes whose header speaks of so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    """A WebP of a few bytes whose canvas has so many pixels."""
    inner = encoded("WEBP")[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 90)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


TWO = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "blue")]}
BAD_PICTURES = {
    "bomb.png": (png_of(100_000, 100_000), "10000000000 pixels"),
    "bomb.webp": (webp_of(16_383, 16_383), "268402689 pixels"),
    "texts.png": (png_of(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), "Decompressed data too large"),
    "empty.png": (b"", "cannot identify"),
    "cut.jpg": (encoded("JPEG")[:-100], "(?i)truncated"),
    "zeros.jpg": (encoded("JPEG")[:-2] + bytes(2), "is cut short: it has no end"),
    "short.png": (png_of(700, 700), "truncated"),
    "apng.png": (encoded("PNG", **TWO), "an animation of 2 pictures; give it as a video, or one of them"),
    "float.png": (encoded("TIFF", "F"), "pixels of 32 bits"),
    "script.png": (encoded("EPS"), "cannot identify"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_no_picture_is_named(tmp_path, name):
    content, said = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_picture(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["folder.png", "nowhere.png", "pipe.png", "device.png", "unreadable.png"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    links = {"nowhere.png": "absent", "device.png": "/dev/zero", "unreadable.png": "/proc/self/mem"}
    if name in links:
        path.symlink_to(links[name])
    else:
        (os.mkfifo if name == "pipe.png" else os.mkdir)(path)
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "wrong ending"])
def test_kinds_of_pictures_give_their_colours(tmp_path, mode):
    content = encoded("JPEG", "CMYK", quality=100) if mode == "CMYK" else encoded("PNG", "RGB" if " " in mode else mode)
    (tmp_path / "a.jpg").write_bytes(content)
    found = read_picture(tmp_path / "a.jpg").frames_FCHW[0, :, 8, 8].numpy() * 255
    assert np.abs(found - [200, 40, 90]).max() <= {"P": 51, "CMYK": 3}.get(mode, 0)  # the web palette has steps of 51


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.allclose(read_picture(tmp_path / "a.png").frames_FCHW[0] * 255, np.broadcast_to(levels // 256, (3, 16, 16)))


def bad_clips(video: torch.Tensor, folder) -> dict[str, tuple[bytes, str]]:
    write_mp4(folder / "whole.mp4", video)
    whole = (folder / "whole.mp4").read_bytes()
    count = whole.index(b"stsz") + 12
    return {
        "count.mp4": (whole[:count] + struct.pack(">I", 2**31) + whole[count + 4 :], "cannot be read"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n", r"cannot be read \(Invalid data"),
        "list.mp4": (b"ffconcat version 1.0\nfile whole.mp4\n", r"cannot be read \(Invalid data"),
        "picture.mp4": (encoded("PNG"), "cannot be read"),
        "picture.gif": (encoded("PNG"), "cannot be read"),
        "bomb.webp": (webp_of(16_383, 16_383), "268402689 pixels"),
        "bomb.gif": (encoded("GIF")[:6] + b"\xff" * 4 + encoded("GIF")[10:], "4294836225 pixels"),
    }


def test_what_is_no_clip_is_named(tmp_path, video):
    for name, (content, said) in bad_clips(video, tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "note", ['{"frames": Infinity, "fps": 8}', "[" * 5000, '{"frames": 9, "fps": 5e-324}', '{"frames": 1e999}']
)
def test_a_hostile_note_counts_as_none(tmp_path, note):
    exif = Image.Exif()
    exif[0x010E] = note
    (tmp_path / "a.webp").write_bytes(encoded("WEBP", duration=100, exif=exif, **TWO))
    read = read_video(tmp_path / "a.webp")
    assert len(read.frames_FCHW) == 2 and read.fps == 10


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_variable_rate_is_the_mean_one(tmp_path, video, ending):
    film(tmp_path / f"a.{ending}", video, milliseconds=[0, 100, 200, 300, 1300, 1340, 1380, 1420, 1460])
    assert read_video(tmp_path / f"a.{ending}").fps == pytest.approx(8 / 1.46, rel=1e-3)


HOLES = {"a.mkv": "libx264", "a.mov": "libx265", "a.webm": "libvpx-vp9", "a.avi": "mpeg4"}


@pytest.mark.parametrize("name, codec", HOLES.items())
def test_a_video_with_a_hole_is_named(tmp_path, video, name, codec):
    """Decoders show something in its place."""
    film(tmp_path / name, torch.nn.functional.interpolate(video, scale_factor=2), codec)
    with av.open(str(tmp_path / name)) as container:
        place, size = max((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 100)
    data = bytearray((tmp_path / name).read_bytes())
    data[place + size // 2 : place + size] = bytes(size - size // 2)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} (is damaged near frame|cannot be read)"):
        read_video(tmp_path / name)


def test_an_mp4_cut_between_two_frames_is_cut_short(tmp_path, video):
    """FFmpeg reads the frames that are there, and no packet is corrupt."""
    write_mp4(tmp_path / "a.mp4", video)
    with av.open(str(tmp_path / "a.mp4")) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[: ends[len(ends) // 2]])
    with pytest.raises(InputError, match=r"a\.mp4 is cut short"):
        read_video(tmp_path / "a.mp4")
