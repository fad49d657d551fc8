"""The one reader of media that any system made (videos are written by `eval/video_writers.py`).

Pictures, animations and folders of frames are decoded by Pillow, containers by PyAV. What is shown upright is read upright: EXIF
orientation of pictures, the display matrix of videos; ``upright=False`` keeps what is stored, as most published scorers do.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, features

from otca.errors import InputError, one_line
from otca.files import parse_json
from otca.rewards.pixels import MAX_FRAMES, MAX_PIXELS

_AVIF = features.check("avif")
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", *((".avif",) if _AVIF else ()))
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(("AVIF",) if _AVIF else ()))
"""What is decoded, whatever the ending says; Pillow alone would try fifty formats more, and run Ghostscript for one of them."""
ANIMATIONS = (".gif", ".webp")
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".webm": "matroska", ".mkv": "matroska", ".avi": "avi"}
"""Ending → FFmpeg's demuxer."""
ENTROPY_CODED, ZEROS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4"), bytes(32)
"""Codecs whose packets hold so many zeros in a row only where a part of the file was never written."""
DEFAULT_FPS = 8.0  # frames a second of what states none: folders of frames, animations without durations
MAX_VIDEO_PIXELS = 512_000_000  # pixels of a video's frames, 6 GB as float32: 246 frames of 1080p

DESCRIPTION = 0x010E
"""EXIF tag ImageDescription; `write_webp` notes frames and rate there, since WebP merges equal neighbours."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is lower, and refuses


@dataclass(frozen=True)
class Video:
    """Frames (F, 3, H, W) float32 in [0, 1] and their rate in frames a second; a picture is one frame of rate 0.

    ``picture``: a still as decoded, where it is not RGB: published preprocessing may resize it before it converts it.
    """

    frames_FCHW: torch.Tensor
    fps: float
    picture: Image.Image | None = None


def quantise(media_BFCHW: torch.Tensor) -> torch.Tensor:
    """Round to the 256 levels of a file, so that scores of tensors and of files agree."""
    return (media_BFCHW * 255).round() / 255


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


# -------------------------------------------------------------------------------------------------------------- reading
def read_picture(path: Path, upright: bool = True) -> Video:
    """A picture as one frame; transparency is left out, and of 16 bits the upper 8 are kept. Limits are checked first."""
    image = _open_picture(path, upright)
    return Video(_tensor(path, [np.asarray(image.convert("RGB"))]), 0.0, None if image.mode in ("RGB", "L") else image)


def read_video(path: Path, default_fps: float = DEFAULT_FPS, upright: bool = True) -> Video:
    """A video file, an animation, or a folder of frames in natural order; ``default_fps`` is for what states no rate.

    An animation is read as shown: a picture that stays twice as long as the briefest one counts twice.
    """
    ending = path.suffix.lower()
    if not path.is_dir() and ending not in (*CONTAINERS, *ANIMATIONS):
        known = ", ".join((*CONTAINERS, *ANIMATIONS))
        raise InputError(f"video {path}: unknown ending {ending!r}; convert it to one of {known}")
    with _naming(path, "video"):
        if path.is_dir():
            frames, fps = _folder(path, upright), default_fps
        elif ending in CONTAINERS:
            frames, fps = _container(path, upright)
        else:
            frames, fps = _animation(path, default_fps)
        return Video(_tensor(path, frames), fps or default_fps)


def is_animation(path: Path) -> bool:
    """Whether a GIF or WebP has several pictures, or says that it stood for several."""
    if path.suffix.lower() not in ANIMATIONS:
        return False
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return getattr(image, "n_frames", 1) > 1 or _note(image) is not None
    except Exception:  # whoever reads it says what is wrong
        return False


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """What decoders of foreign bytes raise, which is of many kinds, becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{what} {path} cannot be read ({reason}); make or copy it again") from error


def _open_picture(path: Path, upright: bool) -> Image.Image:
    """A still picture in its own mode, of 8 bits a channel."""
    if not path.is_file():
        raise InputError(f"image {path} cannot be read (it is missing, or no file)")
    with _naming(path, "image"), Image.open(path, formats=_FORMATS) as image:
        _check_size(path, "image", image.height, image.width)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # JPEG files of cameras, with a preview
            raise InputError(f"image {path} is an animation of {image.n_frames} pictures; give it as a video, or one of them")
        if image.format == "JPEG" and (data := path.read_bytes()).rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise InputError(f"image {path} is cut short: it has no end; make or copy it again")  # zeros are decoded as grey
        still = ImageOps.exif_transpose(image) if upright else image.copy()
    if still.mode.startswith("I;16"):  # Pillow would make all but the darkest 256 levels white
        return Image.fromarray((np.asarray(still) >> 8).astype(np.uint8))
    if still.mode in ("I", "F"):
        raise InputError(f"image {path} has pixels of 32 bits (mode {still.mode}); save it with 8 bits a channel")
    return still


def _folder(folder: Path, upright: bool) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of the folder's pictures."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    if not paths:
        raise InputError(f"folder of frames {folder} holds no frame ({', '.join(PICTURES)})")
    frames = []
    for path in sorted(paths, key=lambda path: natural_key(path.name)):
        frames.append(np.asarray(_open_picture(path, upright).convert("RGB")))
        _check_size(folder, "video", *frames[-1].shape[:2], len(paths))
    return frames


def _container(path: Path, upright: bool) -> tuple[list[np.ndarray], float]:
    """Frames (H, W, 3) uint8 and their mean rate, 0 where there is none.

    FFmpeg gets an open file and one demuxer: given a path it follows playlists, whatever their ending, to other files and hosts.
    """
    import av

    frames, seconds = [], []
    with open(path, "rb") as file:
        _check_whole(path, file.read(64))
        file.seek(0)
        with av.open(file, format=CONTAINERS[path.suffix.lower()]) as container:
            stream = container.streams.best("video")  # and no cover picture
            if stream is None:
                raise InputError(f"video {path} holds no video stream")
            if not getattr(stream, "height", 0):
                raise InputError(f"video {path} is damaged: its header says nothing of the pictures; make or copy it again")
            _check_size(path, "video", stream.height, stream.width, stream.frames or 1)
            if max((entry.pos + entry.size for entry in stream.index_entries or ()), default=0) > path.stat().st_size:
                raise InputError(f"video {path} is cut short: its index lists frames beyond its end; copy it again")
            codec = stream.codec_context
            codec.options = {"err_detect": "explode"} if codec.name in ("hevc", "mjpeg") else {}  # others mark what they conceal
            for packet in container.demux(stream):
                if packet.is_corrupt:  # the file ends in it
                    raise InputError(f"video {path} is cut short ({path.stat().st_size} bytes); copy it again")
                hollow = codec.name in ENTROPY_CODED and ZEROS in bytes(packet)
                for frame in [None] if hollow else packet.decode():
                    if hollow or frame.is_corrupt:
                        raise InputError(f"video {path} is damaged near frame {len(frames)}; make or copy it again")
                    _check_size(path, "video", frame.height, frame.width, len(frames) + 1)
                    matrix = frame.side_data.get("DISPLAYMATRIX") if upright else None
                    frames.append(_turned(path, frame.to_ndarray(format="rgb24"), matrix))
                    seconds += [] if frame.time is None else [frame.time]
            fps, span = float(stream.average_rate or 0), max(seconds, default=0) - min(seconds, default=0)
            steady = fps and math.isclose(span, (len(frames) - 1) / fps, rel_tol=0.01, abs_tol=0.002)
            return frames, fps if steady or not span else (len(frames) - 1) / span  # the header's is a guess where it varies


def _turned(path: Path, pixel_HWC: np.ndarray, matrix) -> np.ndarray:
    """A frame as a display matrix shows it: (x, y) goes to (a·x + c·y, b·x + d·y), by quarter turns and mirrors."""
    if matrix is None:
        return pixel_HWC
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if ((a, d) != (0, 0) and (b, c) != (0, 0)) or 0 in (a + b, c + d):
        raise InputError(f"video {path} is to be shown turned by no quarter; turn it with ffmpeg, or give --orientation stored")
    pixel_HWC = pixel_HWC.swapaxes(0, 1) if a == 0 else pixel_HWC
    return pixel_HWC[:: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1]


def _check_whole(path: Path, head: bytes) -> None:
    """Raise InputError if an AVI or Matroska says that it is longer than it is: FFmpeg reads what is there, without a word."""

    def element(at: int) -> tuple[int, int]:
        """Where the content of a Matroska element begins whose size is written there, and the size; 0 where it is unknown."""
        octets = 9 - head[at].bit_length()
        size = int.from_bytes(head[at : at + octets], "big") & ((1 << 7 * octets) - 1)
        return at + octets, 0 if size == (1 << 7 * octets) - 1 else size

    end, said = path.stat().st_size, 0
    if head[:4] == b"RIFF":
        said = 8 + int.from_bytes(head[4:8], "little")
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        said = sum(element(sum(element(4)) + 4))  # of the segment, which follows the head
    if said > end:
        raise InputError(f"video {path} is cut short ({end} bytes where it says at least {said}); copy it again")


def _animation(path: Path, default_fps: float) -> tuple[list[np.ndarray], float]:
    """Frames (H, W, 3) uint8 and rate of a GIF or WebP.

    The briefest picture sets the frame; in a file of `write_webp` it is what is on show in the middle of each of its frames.
    """
    pictures, durations_ms = [], []
    with Image.open(path, formats=("GIF", "WEBP")) as image:
        count = getattr(image, "n_frames", 1)
        for index in range(count):
            image.seek(index)
            _check_size(path, "video", image.height, image.width, count)  # a GIF's canvas grows with its pictures
            pictures.append(np.asarray(image.convert("RGB")))
            durations_ms.append(image.info.get("duration", 0))
        note = _note(image)
    if note:
        frames, fps = note
        middles = (np.arange(min(frames, MAX_FRAMES + 1)) + 0.5) * 1000 / fps
        order = np.searchsorted(np.cumsum([0, *durations_ms[:-1]]), middles, side="right") - 1
    elif min(durations_ms) <= 0:
        order, fps = np.arange(count), default_fps
    else:
        step = min(durations_ms) if count > 1 else 1000 / default_fps
        repeats = [max(1, round(duration / step)) for duration in durations_ms]
        order = np.repeat(np.arange(count), np.minimum(repeats, MAX_FRAMES + 1))
        fps = default_fps if count == 1 else 1000 * sum(repeats) / sum(durations_ms)
    _check_size(path, "video", *pictures[0].shape[:2], len(order))
    return [pictures[i] for i in order], fps


def _note(image: Image.Image) -> tuple[int, float] | None:
    """Frames and rate as `write_webp` notes them; None in files of others."""
    try:
        note = parse_json(image.getexif()[DESCRIPTION], "note")
        frames, fps = int(note["frames"]), float(note["fps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (frames, fps) if frames > 0 and 0.001 < fps < 1000 else None


def _check_size(path: Path, what: str, height: int, width: int, frames: int = 1) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(f"{what} {path} has {width}×{height} pixels, more than {MAX_PIXELS}; scale it down")
    if frames > MAX_FRAMES or frames * height * width > MAX_VIDEO_PIXELS:
        raise InputError(
            f"video {path} has {frames} frames of {width}×{height} or more; the limits are {MAX_FRAMES} frames and "
            f"{MAX_VIDEO_PIXELS} pixels in all; cut it, or scale it down: ffmpeg -i IN -vf scale=-2:{height // 2} OUT"
        )


def _tensor(path: Path, frames: list[np.ndarray]) -> torch.Tensor:
    """Frames (F, 3, H, W) float32 in [0, 1], from (H, W, 3) uint8."""
    if not frames:
        raise InputError(f"video {path} holds no frame; make or copy it again")
    sizes = sorted({frame.shape for frame in frames})
    if len(sizes) > 1:
        raise InputError(f"video {path} has frames of different sizes ({sizes[0]} and {sizes[1]})")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
