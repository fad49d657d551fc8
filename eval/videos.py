"""Read videos that any system made (MP4, GIF, animated WebP, folders of frames) and write H.264 MP4 and animated WebP."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from eval.media import read_picture
from otca.errors import InputError, one_line
from otca.files import write_atomic
from otca.limits import MAX_FRAMES, MAX_PIXELS, MAX_VIDEO_PIXELS
from otca.untrusted import parse_json

CONTAINERS = (".mp4", ".m4v", ".mov")
ANIMATIONS = (".gif", ".webp")
VIDEO_ENDINGS = CONTAINERS + ANIMATIONS
FRAME_ENDINGS = (".png", ".jpg", ".jpeg")
DEFAULT_FPS = 8.0
"""Frames a second of what states none: folders of frames, animations without durations."""

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"meta", b"udta", b"styp", b"sidx", b"moof", b"mfra"}
_STREAMS = 64
"""Streams of a container that `MAX_PIXELS` is told to while it is opened."""
_DESCRIPTION = 0x010E
"""EXIF tag ImageDescription; `write_webp` notes frames and rate there, since WebP merges equal neighbours."""


@dataclass(frozen=True)
class Video:
    """Frames (F, 3, H, W) float32 in [0, 1] and their rate in frames a second."""

    frames_FCHW: torch.Tensor
    fps: float


# -------------------------------------------------------------------------------------------------------------- reading


def read_video(path: Path, default_fps: float = DEFAULT_FPS) -> Video:
    """A video file, or a folder of PNG or JPEG frames in natural order; ``default_fps`` is for what states no rate.

    An animation is read as shown: a picture that stays twice as long as the briefest one counts twice. Raises InputError
    naming the file if it is missing, empty, cut short, damaged, of mixed sizes, or larger than `otca.limits` allows, which is
    found at the latest while decoding.
    """
    if path.is_dir():
        frames, fps = _read_folder(path), default_fps
    else:
        frames, fps = _read_file(path, default_fps)
    return Video(_stack(path, frames), fps)


def natural_key(name: str) -> list[str | int]:
    """Sorting key under which frame2 comes before frame10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]


def check_video(video_FCHW: torch.Tensor, frames: int = 1) -> None:
    """Raise InputError unless the tensor is one video (F, 3, H, W), floating, in [0, 1], with at least so many frames."""
    if video_FCHW.ndim != 4 or video_FCHW.shape[1] != 3 or not video_FCHW.is_floating_point():
        raise InputError(f"video must be (F, 3, H, W) and floating, got {tuple(video_FCHW.shape)} {video_FCHW.dtype}")
    if len(video_FCHW) < frames:
        raise InputError(f"video has {len(video_FCHW)} frame(s), at least {frames} are needed")
    if not (video_FCHW.min() >= 0 and video_FCHW.max() <= 1):
        raise InputError(f"video must lie in [0, 1], found {video_FCHW.min():.4g} to {video_FCHW.max():.4g}; scale or clamp it")


def _read_file(path: Path, default_fps: float) -> tuple[list[np.ndarray], float]:
    if not path.is_file():
        raise InputError(f"video {path} not found")
    ending = path.suffix.lower()
    if ending not in VIDEO_ENDINGS:
        raise InputError(f"video {path}: unknown ending {ending!r}; convert it to one of {', '.join(VIDEO_ENDINGS)}")
    if path.stat().st_size == 0:
        raise InputError(f"video {path} is empty (0 bytes); make or copy it again")
    return (_read_container if ending in CONTAINERS else _read_animation)(path, default_fps)


def _read_folder(folder: Path) -> list[np.ndarray]:
    """Frames (3, H, W) float32 of the folder's pictures."""
    with _refusing(folder):
        paths = list(folder.iterdir())
    names = sorted((p.name for p in paths if p.suffix.lower() in FRAME_ENDINGS and p.name[0] != "."), key=natural_key)
    if not names:
        raise InputError(f"folder of frames {folder} holds no frame ({', '.join(FRAME_ENDINGS)})")
    frames = []
    for name in names:
        frames.append(read_picture(folder / name))
        _check_size(folder, *frames[-1].shape[1:], len(names))
    return frames


def _read_container(path: Path, default_fps: float) -> tuple[list[np.ndarray], float]:
    """Frames (H, W, 3) uint8 and the average rate.

    FFmpeg gets an open file and one demuxer: given a path it follows playlists, whatever their ending, to other files and hosts.
    Its decoders allocate no frame beyond `MAX_PIXELS`.
    """
    import av

    limit = {"max_pixels": str(MAX_PIXELS)}
    frames = []
    with _refusing(path), open(path, "rb") as file:
        _check_boxes(path, file)
        file.seek(0)
        with av.open(file, format="mp4", stream_options=[limit] * _STREAMS) as container:
            if not container.streams.video:
                raise InputError(f"video {path} holds no video stream")
            stream = container.streams.video[0]
            _check_size(path, stream.height, stream.width, stream.frames or 1)
            stream.codec_context.options = limit
            for frame in container.decode(stream):
                _check_size(path, frame.height, frame.width, len(frames) + 1)
                frames.append(frame.to_ndarray(format="rgb24"))
            rate = float(stream.average_rate or 0)
            return frames, rate if rate > 0 else default_fps


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What decoders of foreign bytes raise, which is of many kinds, becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"video {path} cannot be read ({reason}); make or copy it again") from error


def _check_boxes(path: Path, file: BinaryIO) -> None:
    """Raise InputError if a top-level box of an MP4 file reaches past the file's end."""
    end, start = path.stat().st_size, 0
    while start + 16 <= end:
        file.seek(start)
        size, kind, large = struct.unpack(">I4sQ", file.read(16))
        if kind not in _BOXES or size == 0:  # 0: up to the end of the file
            return
        start += max(large if size == 1 else size, 8)
    if start > end:
        raise InputError(
            f"video {path} is cut short: {start - end} bytes of its {kind.decode()!r} part are missing; copy it again"
        )


def _read_animation(path: Path, default_fps: float) -> tuple[list[np.ndarray], float]:
    """Frames (H, W, 3) uint8 and rate of a GIF or WebP."""
    pictures, durations = [], []
    with _refusing(path):
        _check_end(path)
        with Image.open(path, formats=("GIF", "WEBP")) as image:
            count = getattr(image, "n_frames", 1)
            for index in range(count):
                image.seek(index)
                _check_size(path, image.height, image.width, count)  # a GIF's canvas grows with its pictures
                pictures.append(np.asarray(image.convert("RGB")))
                durations.append(image.info.get("duration", 0))
            note = _note(image)
    order, fps = _timeline(durations, default_fps) if note is None else _noted_timeline(durations, *note)
    if len(order) > len(pictures):
        _check_size(path, *pictures[0].shape[:2], len(order))
    return [pictures[i] for i in order], fps


def _check_end(path: Path) -> None:
    """Raise InputError if a RIFF file is shorter than it says, or a GIF lacks its trailer."""
    data = path.read_bytes()
    riff_short = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    gif_short = data[:3] == b"GIF" and not data.rstrip(b"\0").endswith(b";")
    if riff_short or gif_short:
        raise InputError(f"video {path} is cut short ({len(data)} bytes); copy it again")


def _timeline(durations_ms: list[float], default_fps: float) -> tuple[list[int], float]:
    """Index of the picture shown in each frame, and the rate: the briefest picture sets the frame."""
    if min(durations_ms) <= 0:
        return list(range(len(durations_ms))), default_fps
    step = min(durations_ms) if len(durations_ms) > 1 else 1000 / default_fps
    repeats = [max(1, round(d / step)) for d in durations_ms]
    order = np.repeat(np.arange(len(repeats)), np.minimum(repeats, MAX_FRAMES + 1)).tolist()
    return order, default_fps if len(repeats) == 1 else 1000 * sum(repeats) / sum(durations_ms)


def _noted_timeline(durations_ms: list[float], frames: int, fps: float) -> tuple[list[int], float]:
    """The same for a file of `write_webp`: which picture is on show in the middle of each frame."""
    starts = np.cumsum([0, *durations_ms[:-1]])
    middles = (np.arange(min(frames, MAX_FRAMES + 1)) + 0.5) * 1000 / fps
    return (np.searchsorted(starts, middles, side="right") - 1).tolist(), fps


def _note(image: Image.Image) -> tuple[int, float] | None:
    """Frames and rate as `write_webp` notes them; None in files of others."""
    try:
        note = parse_json(image.getexif()[_DESCRIPTION], "note")
        frames, fps = int(note["frames"]), float(note["fps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (frames, fps) if frames > 0 and 0.001 < fps < 1000 else None


def _check_size(path: Path, height: int, width: int, frames: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(f"video {path} has frames of {width}×{height} pixels, more than {MAX_PIXELS}; scale it down")
    if frames > MAX_FRAMES or frames * height * width > MAX_VIDEO_PIXELS:
        raise InputError(
            f"video {path} has {frames} frames of {width}×{height} or more; the limits are {MAX_FRAMES} frames and "
            f"{MAX_VIDEO_PIXELS} pixels in all; cut it or scale it down"
        )


def _stack(path: Path, frames: list[np.ndarray]) -> torch.Tensor:
    """Frames (F, 3, H, W) float32 in [0, 1], from (H, W, 3) uint8 or (3, H, W) float32."""
    if not frames:
        raise InputError(f"video {path} holds no frame; make or copy it again")
    sizes = sorted({frame.shape for frame in frames})
    if len(sizes) > 1:
        raise InputError(f"video {path} has frames of different sizes ({sizes[0]} and {sizes[1]})")
    video = torch.from_numpy(np.stack(frames))
    return video if video.is_floating_point() else video.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)


# -------------------------------------------------------------------------------------------------------------- writing


def write_mp4(path: Path, video_FCHW: torch.Tensor, fps: float = DEFAULT_FPS, crf: int = 12) -> None:
    """H.264, 4:2:0, BT.709, index first: plays in any browser; equal input gives equal bytes. ``crf`` 0 is best, 51 worst.

    Chroma is halved, so sharp colour edges of small videos change (32 to 36 dB at 64 pixels): score WebP or frames instead.
    Raises InputError for odd heights or widths, which 4:2:0 cannot hold.
    """
    import av

    frames_FHWC = _to_bytes(video_FCHW)
    height, width = frames_FHWC.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"video {path}: MP4 needs even sides, got {width}×{height}; crop a pixel or write WebP")
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "video.mp4"
        with av.open(str(aside), "w", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), "preset": "slow"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count = 1  # more threads give other bytes
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, TV range
            for pixels in frames_FHWC:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        write_atomic(path, aside.read_bytes())


def write_webp(path: Path, video_FCHW: torch.Tensor, fps: float = DEFAULT_FPS, lossless: bool = True, quality: int = 90) -> None:
    """Animated WebP that loops: exact to 8 bits if ``lossless``, else of ``quality`` 0 to 100; equal input, equal bytes."""
    frames_FHWC = _to_bytes(video_FCHW)
    pictures = [Image.fromarray(pixels) for pixels in frames_FHWC]
    edges_ms = np.rint(np.arange(len(pictures) + 1) * 1000 / fps).astype(int)
    exif = Image.Exif()
    exif[_DESCRIPTION] = json.dumps({"frames": len(pictures), "fps": float(fps)})
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=np.diff(edges_ms).tolist(),
        loop=0,
        lossless=lossless,
        quality=quality,
        exif=exif,
    )
    write_atomic(path, buffer.getvalue())


def _to_bytes(video_FCHW: torch.Tensor) -> np.ndarray:
    check_video(video_FCHW)
    return (video_FCHW.cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous().numpy()
