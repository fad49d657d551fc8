"""Media that others made: what is no picture or clip, damaged, animated or too large is refused in one line, unread."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from eval import videos
from eval.items import image_items
from eval.media import read_picture
from eval.videos import read_video, write_mp4
from otca.errors import InputError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, more: bytes = b"") -> bytes:
    """A PNG of a few bytes whose header speaks of so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    """A WebP of a few bytes whose canvas has so many pixels."""
    inner = picture("WEBP")[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 90)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


TWO = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "blue")]}
BAD_PICTURES = {
    "large.png": (png_of(9000, 9000), "9000×9000 pixels, more than 64000000"),
    "bomb.png": (png_of(100_000, 100_000), "10000000000 pixels"),
    "bomb.webp": (webp_of(16_383, 16_383), "268402689 pixels"),
    "texts.png": (png_of(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), "Decompressed data too large"),
    "zero.png": (png_of(0, 0), "cannot be read"),
    "empty.png": (b"", "cannot identify"),
    "text.png": (b"this is a text", "cannot identify"),
    "cut.png": (picture("PNG")[:-30], "cannot be read"),
    "cut.jpg": (picture("JPEG")[:-100], "(?i)truncated"),
    "short.png": (png_of(700, 700), "truncated"),
    "apng.png": (picture("PNG", **TWO), "an animation of 2 pictures; give it as a video, or one of them"),
    "animated.webp": (picture("WEBP", **TWO), "an animation of 2 pictures"),
    "gif.png": (picture("GIF"), "cannot identify"),
    "tiff.png": (picture("TIFF"), "cannot identify"),
    "script.png": (picture("EPS"), "cannot identify"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_no_picture_is_named(tmp_path, name):
    content, said = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_picture(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["folder.png", "nowhere.png", "loop.png", "pipe.png", "device.png", "unreadable.png"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    links = {"nowhere.png": "absent", "loop.png": name, "device.png": "/dev/zero", "unreadable.png": "/proc/self/mem"}
    if name in links:
        path.symlink_to(links[name])
    else:
        (os.mkfifo if name == "pipe.png" else os.mkdir)(path)
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        read_picture(path)
    (item,), _ = image_items(tmp_path)
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        item.read()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "wrong ending"])
def test_kinds_of_pictures_give_their_colours(tmp_path, mode):
    content = picture("JPEG", "CMYK", quality=100) if mode == "CMYK" else picture("PNG", "RGB" if " " in mode else mode)
    (tmp_path / "a.jpg").write_bytes(content)
    found = read_picture(tmp_path / "a.jpg")[:, 8, 8] * 255
    assert np.abs(found - [200, 40, 90]).max() <= {"P": 51, "CMYK": 3}.get(mode, 0)  # the web palette has steps of 51


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png") * 255, np.broadcast_to(levels // 256, (3, 16, 16)))


def gif_of(canvas: int, frame: int) -> bytes:
    """A GIF of two pictures, the second larger than the canvas."""
    buffer = io.BytesIO()
    Image.new("P", (frame, frame)).save(buffer, "GIF", save_all=True, append_images=[Image.new("P", (frame, frame), 1)])
    return buffer.getvalue()[:6] + struct.pack("<HH", canvas, canvas) + buffer.getvalue()[10:]


def bad_clips(video: torch.Tensor, folder) -> dict[str, tuple[bytes, str]]:
    write_mp4(folder / "whole.mp4", video)
    whole = (folder / "whole.mp4").read_bytes()
    count = whole.index(b"stsz") + 12
    return {
        "count.mp4": (whole[:count] + struct.pack(">I", 2**31) + whole[count + 4 :], "cannot be read"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n", r"cannot be read \(Invalid data"),
        "list.mp4": (b"ffconcat version 1.0\nfile whole.mp4\n", r"cannot be read \(Invalid data"),
        "picture.mp4": (picture("PNG"), "cannot be read"),
        "picture.gif": (picture("PNG"), "cannot be read"),
        "bomb.webp": (webp_of(16_383, 16_383), "268402689 pixels"),
        "bomb.gif": (gif_of(1, 16)[:6] + b"\xff\xff\xff\xff" + gif_of(1, 16)[10:], "4294836225 pixels"),
    }


def test_what_is_no_clip_is_named(tmp_path, video):
    for name, (content, said) in bad_clips(video, tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)


def test_a_canvas_that_grows_and_a_header_that_lies_are_bombs(tmp_path, video, monkeypatch):
    (tmp_path / "a.gif").write_bytes(gif_of(4, 64))
    write_mp4(tmp_path / "a.mp4", video)
    data = (tmp_path / "a.mp4").read_bytes()
    place = data.index(b"avc1", data.index(b"stsd")) + 28
    (tmp_path / "a.mp4").write_bytes(data[:place] + struct.pack(">HH", 16, 16) + data[place + 4 :])
    assert (
        read_video(tmp_path / "a.gif").frames_FCHW.shape[2:] == read_video(tmp_path / "a.mp4").frames_FCHW.shape[2:] == (64, 64)
    )
    monkeypatch.setattr(videos, "MAX_PIXELS", 1000)
    for name in ("a.gif", "a.mp4"):
        with pytest.raises(InputError, match="64×64 pixels, more than 1000"):
            read_video(tmp_path / name)


@pytest.mark.parametrize(
    "note", ['{"frames": Infinity, "fps": 8}', "[" * 5000, '{"frames": 9, "fps": 5e-324}', '{"frames": 1e999}']
)
def test_a_hostile_note_counts_as_none(tmp_path, note):
    exif = Image.Exif()
    exif[0x010E] = note
    (tmp_path / "a.webp").write_bytes(picture("WEBP", duration=100, exif=exif, **TWO))
    read = read_video(tmp_path / "a.webp")
    assert len(read.frames_FCHW) == 2 and read.fps == 10


def test_files_whose_names_are_no_text_are_refused(tmp_path):
    name = os.fsencode(tmp_path) + b"/a\xff.png"
    with open(name, "wb") as file:
        file.write(picture("PNG"))
    with pytest.raises(InputError, match=r"the name 'a\\udcff.png' is not UTF-8"):
        image_items(tmp_path)
