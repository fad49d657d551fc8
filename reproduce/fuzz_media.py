"""Pictures and clips for the fuzzing of readers: small files of every kind, and damage to their bytes (`fuzz_inputs.damaged`)."""

from __future__ import annotations

import io
import json
import struct
import zlib
from functools import lru_cache, partial

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from reproduce.fuzz_inputs import Input, damaged


def _image(mode: str, side: int = 12) -> Image.Image:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


def _saved(image: Image.Image, kind: str, frames: int = 1, **options) -> bytes:
    buffer = io.BytesIO()
    if frames > 1:
        options |= {"save_all": True, "append_images": [image.rotate(90 * i) for i in range(1, frames)]}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def pictures() -> list[tuple[str, bytes]]:
    """Small pictures of every kind that is read, and of some that are not."""
    out = [(".png", _saved(_image(mode), "PNG")) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")]
    out += [(".png", _saved(_image("RGB"), "PNG", 3)), (".jpg", _saved(_image("CMYK"), "JPEG"))]
    out += [(".jpg", _saved(_image("RGB"), "JPEG", progressive=progressive)) for progressive in (False, True)]
    out += [(".webp", _saved(_image("RGBA"), "WEBP", lossless=lossless)) for lossless in (False, True)]
    out += [
        (".webp", _saved(_image("RGB"), "WEBP", 3)),
        (".bmp", _saved(_image("RGB"), "BMP")),
        (".bmp", _saved(_image("P"), "BMP")),
    ]
    return 2 * out + [(".png", _saved(_image("RGB"), kind)) for kind in ("GIF", "TIFF", "EPS", "ICO")]


@lru_cache(maxsize=1)
def clips() -> list[tuple[str, bytes]]:
    """Small clips of every kind that is read, and of some that are not."""
    import av

    note = Image.Exif()
    note[0x010E] = json.dumps({"frames": 4, "fps": 8.0})
    out = [(".gif", _saved(_image("P"), "GIF", frames, duration=80)) for frames in (1, 4)]
    out += [
        (".webp", _saved(_image("RGB"), "WEBP", 3, duration=[50, 100, 50], exif=note)),
        (".webp", _saved(_image("RGB"), "WEBP")),
    ]
    for codec, pixels in (("libx264", "yuv420p"), ("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = 16, 16, pixels, 1
            for index in range(3):
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), 80 * index, np.uint8), format="rgb24"))
                )
            container.mux(stream.encode())
        out.append((".mp4", buffer.getvalue()))
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"
    return [*out, *out, (".mp4", playlist), (".mp4", b"ffconcat version 1.0\nfile /etc/hostname\n"), (".gif", pictures()[0][1])]


_MEDIA_TOKENS = (
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\0" * 64,
    b"\x7f\xff\xff\xff",
    b"\0\0\0\1",
    b"IHDR",
    b"acTL",
    b"ANMF",
    b"VP8X",
    b"stsz",
)
_MEDIA_TOKENS += (
    b"\x2c\0\0\0\0\xff\x00\xff\x00\0",
    b"moov",
    b"\0\0\0\x08free",
    b"\xff\xd8",
    b"\xff\xda",
    b"\x21\xf9\x04\0\0\0\0\0",
    b";",
)


@st.composite
def _media(draw, made, endings: tuple[str, ...]) -> Input:
    ending, content = draw(st.sampled_from(made()))
    content = draw(damaged(content, _MEDIA_TOKENS))
    if draw(st.booleans()):
        content = _mended(content)
    return Input(draw(st.sampled_from((ending,) * 24 + endings)), content)


def _mended(content: bytes) -> bytes:
    """Checksums of a PNG's parts and the length of a RIFF file made right again, so that the damage lies deeper."""
    if content[:4] == b"RIFF" and len(content) >= 8:
        return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    out, start = content[:8], 8
    while start + 12 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        part = content[start + 4 : start + 8 + length]
        if len(part) < 4 + length:
            break
        out += struct.pack(">I", length) + part + struct.pack(">I", zlib.crc32(part))
        start += 12 + length
    return out + content[start:]


picture_files = partial(_media, pictures, (".png", ".jpg", ".webp", ".bmp"))
clip_files = partial(_media, clips, (".mp4", ".gif", ".webp", ".mov"))
