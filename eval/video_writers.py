"""Videos written so that equal input gives equal bytes: MP4 for browsers, exact WebP for scores."""

from __future__ import annotations

import io
import json
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.media import DEFAULT_FPS, DESCRIPTION, check_video
from otca.errors import InputError
from otca.files import write_atomic


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
    pictures = [Image.fromarray(pixels) for pixels in _to_bytes(video_FCHW)]
    edges_ms = np.rint(np.arange(len(pictures) + 1) * 1000 / fps).astype(int)
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps({"frames": len(pictures), "fps": float(fps)})
    timing = {"duration": np.diff(edges_ms).tolist(), "loop": 0, "exif": exif}
    buffer = io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], lossless=lossless, quality=quality, **timing)
    write_atomic(path, buffer.getvalue())


def _to_bytes(video_FCHW: torch.Tensor) -> np.ndarray:
    check_video(video_FCHW)
    return (video_FCHW.cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous().numpy()
