"""What travels between a run and a server of rewards: media and prompts one way, numbers back; nothing is ever unpickled.

Body of ``POST /score``, content type ``application/x-otca-media``:

- 4 bytes: N, the length of the head, big-endian;
- N bytes: the head, JSON in UTF-8: ``{"wire": 1, "fps": number, "items": [{"id", "text", "spec", "kind", "bytes"}, …]}``, an
  item for each sample: its prompt (``spec`` an object or null), and the kind and length of its media. ``fps``, the frames a
  second that the videos have, may be left out or null: the server then takes its own. It matters to rewards alone whose
  ``/health`` states an ``fps``, the server's own; where that is null, or not stated, the reward does not depend on it;
- the media, one after another and nothing behind them. Kind "png": a picture, 8-bit RGB. Kind "npy": a video, an array file of
  NumPy's in C order, (frames, height, width, 3), uint8, or float32 in [0, 1]. All of one request have the same size.

Answer: ``{"name": …, "scores": [a number for each item, in order]}``; anything but status 200 carries ``{"error": one line}``.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from otca.bounds import checked_rate
from otca.errors import InputError, one_line
from otca.rewards.pixels import MAX_FRAMES, MAX_PIXELS, MAX_VIDEO_PIXELS, TooLarge
from otca.types import Prompt
from otca.untrusted import parse_json

VERSION = 1
CONTENT_TYPE = "application/x-otca-media"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What may name a reward on the wire: it becomes a column of the rows and a part of the address."""
TOKEN = "OTCA_REWARD_TOKEN"
"""Environment variable with the bearer token, for server and client; it belongs in no config file."""
MAX_ITEMS = 1024
MAX_HEAD = 16_000_000
"""Items, and bytes of the head, of one request."""

Opened = tuple[tuple[int, int, int], Callable[[], np.ndarray]]
"""Frames, height and width of media, and what decodes them to (F, H, W, 3), uint8 or float32."""


def bearer_token() -> str:
    """The token of the environment, empty if there is none. Raises InputError (which does not show it) for what is no token."""
    token = os.environ.get(TOKEN, "")
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError(f"{TOKEN} must consist of visible ASCII characters, without spaces or line ends")
    return token


# ---------------------------------------------------------------------------------------------------------------- packing


def pack(pixel_BFCHW: torch.Tensor, prompts: list[Prompt], fps: float | None = None) -> bytes:
    """The body for media as uint8 (B, F, 3, H, W) on the CPU: PNG where F is 1, npy elsewhere; ``fps`` where it matters."""
    kind, encode = ("png", _to_png) if pixel_BFCHW.shape[1] == 1 else ("npy", _to_npy)
    media = [encode(pixel_FHWC) for pixel_FHWC in pixel_BFCHW.permute(0, 1, 3, 4, 2).contiguous().numpy()]
    items = [
        {"id": prompt.id, "text": prompt.text, "spec": prompt.spec, "kind": kind, "bytes": len(data)}
        for prompt, data in zip(prompts, media)
    ]
    rate = {} if fps is None else {"fps": fps}
    head = json.dumps({"wire": VERSION, **rate, "items": items}, allow_nan=False).encode()
    return b"".join((len(head).to_bytes(4, "big"), head, *media))


def media_bytes(frames: int, height: int, width: int) -> int:
    """No fewer bytes than a sample's media take packed: noise cannot be compressed, and PNG adds a byte a row."""
    return math.ceil(1.01 * frames * height * (3 * width + 1)) + 1024


def _to_png(pixel_FHWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixel_FHWC[0]).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_npy(pixel_FHWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, pixel_FHWC, allow_pickle=False)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- unpacking


def unpack(body: bytes | bytearray) -> tuple[torch.Tensor, list[Prompt]]:
    """Media float32 (B, F, 3, H, W) in [0, 1] and their prompts. Sizes are read, and refused, before anything is decoded.

    Raises TooLarge where a limit is passed and InputError for everything else that is not as written above.
    """
    head, start = _head(body)
    prompts, opened = [], []
    for place, item in enumerate(head["items"]):
        try:
            prompts.append(_prompt(item))
            end = start + int(item["bytes"])
            opened.append((_open_png if item["kind"] == "png" else _open_npy)(memoryview(body)[start:end]))
            start = end
        except Image.DecompressionBombError as error:
            raise TooLarge(f"item {place}: {one_line(error)}") from error
        except Exception as error:  # readers of foreign bytes raise many kinds
            raise InputError(f"item {place} is not an item as otca/rewards/wire.py describes it ({one_line(error)})") from error
        frames, height, width = opened[-1][0]
        if height * width > MAX_PIXELS or frames > MAX_FRAMES or len(head["items"]) * frames * height * width > MAX_VIDEO_PIXELS:
            raise TooLarge(
                f"item {place} of {len(head['items'])}: {frames} frames of {width}×{height}; the limits are {MAX_PIXELS} pixels "
                f"a frame, {MAX_FRAMES} frames, and {MAX_VIDEO_PIXELS} pixels in all; send fewer at a time"
            )
    if start != len(body):
        raise InputError(f"the body has {len(body)} bytes, and its head speaks of {start}")
    sizes = sorted({size for size, _ in opened})
    if len(sizes) > 1:
        raise InputError(f"media of different sizes (frames, height, width: {sizes[0]} and {sizes[1]}); send them apart")
    media_BFCHW = torch.empty(len(opened), sizes[0][0], 3, *sizes[0][1:])
    for place, (_, load) in enumerate(opened):
        try:
            pixel_FHWC = torch.from_numpy(np.array(load()))  # a copy of its own: the body is read-only
        except Exception as error:  # as above
            raise InputError(f"item {place}: the media cannot be decoded ({one_line(error)})") from error
        pixel_FHWC = pixel_FHWC if pixel_FHWC.is_floating_point() else pixel_FHWC.float().div_(255)
        media_BFCHW[place] = pixel_FHWC.permute(0, 3, 1, 2)
    return media_BFCHW, prompts


def stated_rate(body: bytes | bytearray) -> float | None:
    """Frames a second that a body states, or None. Raises InputError for what is no rate, and as `unpack` does for the head."""
    rate = _head(body)[0].get("fps")
    return None if rate is None else checked_rate("fps", rate)


def _head(body: bytes | bytearray) -> tuple[dict, int]:
    """The head, whose items are a list, and where the media start."""
    length = int.from_bytes(body[:4], "big")
    if length > MAX_HEAD:
        raise TooLarge(f"a head of {length} bytes; the limit is {MAX_HEAD}")
    if len(body) < 4 + length or not length:
        raise InputError(f"a body of {len(body)} bytes cannot hold its length and a head of {length}")
    head = parse_json(bytes(body[4 : 4 + length]).decode(errors="replace"), "the head of the body")
    items = head.get("items") if isinstance(head, dict) else None
    if not isinstance(items, list) or not items or head.get("wire") != VERSION:
        raise InputError(f'the head must be {{"wire": {VERSION}, "items": [at least one]}}')
    if len(items) > MAX_ITEMS:
        raise TooLarge(f"{len(items)} items; the limit is {MAX_ITEMS}")
    return head, 4 + length


def _prompt(item: dict) -> Prompt:
    if not isinstance(item["id"], str) or not isinstance(item["text"], str) or not isinstance(item.get("spec"), dict | None):
        raise ValueError("id and text must be strings, spec an object or null")
    if type(item["bytes"]) is not int or item["bytes"] < 1 or item["kind"] not in ("png", "npy"):
        raise ValueError('bytes must be a positive integer, kind "png" or "npy"')
    return Prompt(id=item["id"], text=item["text"], spec=item.get("spec"))


def _open_png(data: memoryview) -> Opened:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
        raise ValueError(f"expected one 8-bit RGB picture, found mode {image.mode}, {getattr(image, 'n_frames', 1)} pictures")
    return (1, image.height, image.width), lambda: np.asarray(image)[None]


def _open_npy(data: memoryview) -> Opened:
    """Only the header goes through NumPy's reader; the numbers are taken as they lie, so that nothing can be unpickled."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected an array file of format 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype not in (np.dtype("uint8"), np.dtype("<f4")) or fortran or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise ValueError(f"expected (F, H, W, 3) of uint8 or float32 in C order, found {shape} of {dtype}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{shape} of {dtype} are not the {len(data) - file.tell()} bytes that follow")

    def load() -> np.ndarray:
        pixel_FHWC = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
        if dtype.kind == "f" and not (pixel_FHWC.min() >= 0 and pixel_FHWC.max() <= 1):
            raise ValueError("found NaN, or values outside of [0, 1]")
        return pixel_FHWC

    return tuple(shape[:3]), load
