"""What travels between a run and a server of rewards: media and prompts one way, numbers back; nothing is ever unpickled.

Body of ``POST /score``, content type ``application/x-otca-media``: a safetensors file. Its one tensor ``media`` is uint8 of shape
(samples, frames, 3, height, width). Its metadata has, under ``otca``, JSON with a prompt for each sample: ``{"wire": 2, "fps":
number, "prompts": [{"id", "text", "spec"}, …]}``, where ``spec`` is an object or null. ``fps``, the frames a second that the
videos have, may be left out or null: the server then takes its own. It matters to rewards alone whose ``/health`` states one.

Answer: ``{"name": …, "scores": [a number for each sample, in order]}``; anything but status 200 carries ``{"error": one line}``.
"""

from __future__ import annotations

import json
import os
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from otca.bounds import checked_rate
from otca.errors import InputError, one_line
from otca.files import parse_json
from otca.rewards.pixels import MAX_FRAMES, MAX_PIXELS, MAX_VIDEO_PIXELS
from otca.types import Prompt

VERSION = 2
CONTENT_TYPE = "application/x-otca-media"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What may name a reward on the wire: it becomes a column of the rows and a part of the address."""
TOKEN = "OTCA_REWARD_TOKEN"
"""Environment variable with the bearer token, for server and client; it belongs in no config file."""
MAX_ITEMS = 1024
MAX_HEAD = 16_000_000  # samples, and bytes of the head, of one request


class TooLarge(InputError):
    """A request beyond the limits."""


def bearer_token() -> str:
    """The token of the environment, empty if there is none. Raises InputError (which does not show it) for what is no token."""
    token = os.environ.get(TOKEN, "")
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError(f"{TOKEN} must consist of visible ASCII characters, without spaces or line ends")
    return token


def pack(pixel_BFCHW: torch.Tensor, prompts: list[Prompt], fps: float | None = None) -> bytes:
    """The body for media as uint8 (B, F, 3, H, W) on the CPU; ``fps`` where it matters."""
    rate = {} if fps is None else {"fps": fps}
    rows = [{"id": prompt.id, "text": prompt.text, "spec": prompt.spec} for prompt in prompts]
    head = json.dumps({"wire": VERSION, **rate, "prompts": rows}, allow_nan=False)
    return save({"media": pixel_BFCHW.contiguous()}, {"otca": head})


def unpack(body: bytes | bytearray) -> tuple[torch.Tensor, list[Prompt], float | None]:
    """Media float32 (B, F, 3, H, W) in [0, 1], their prompts, and their frames a second if the body states them."""
    length = int.from_bytes(body[:8], "little")
    if length > MAX_HEAD:
        raise TooLarge(f"a head of {length} bytes; the limit is {MAX_HEAD}")
    try:
        media = load(bytes(body))["media"]
        said = json.loads(body[8 : 8 + length])["__metadata__"]["otca"]
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"the body is no safetensors file as otca/rewards/wire.py describes it ({one_line(error)})") from error
    head = parse_json(said, "the head of the body")
    rows = head.get("prompts") if isinstance(head, dict) else None
    if not isinstance(rows, list) or head.get("wire") != VERSION:
        raise InputError(f'the head must be {{"wire": {VERSION}, "prompts": […]}}')
    if media.dtype != torch.uint8 or media.ndim != 5 or media.shape[2] != 3 or not media.numel() or len(media) != len(rows):
        raise InputError(
            f"media must be uint8 (samples, frames, 3, height, width) with a prompt a sample; found {media.dtype} "
            f"{tuple(media.shape)} and {len(rows)} prompts"
        )
    samples, frames, _, height, width = media.shape
    if samples > MAX_ITEMS or frames > MAX_FRAMES or height * width > MAX_PIXELS or media.numel() > 3 * MAX_VIDEO_PIXELS:
        raise TooLarge(
            f"{samples} samples of {frames} frames of {width}×{height}; the limits are {MAX_ITEMS} samples, {MAX_FRAMES} frames, "
            f"{MAX_PIXELS} pixels a frame, and {MAX_VIDEO_PIXELS} pixels in all; send fewer at a time"
        )
    rate = head.get("fps")
    prompts = [_prompt(place, row) for place, row in enumerate(rows)]
    return media.float().div_(255), prompts, None if rate is None else checked_rate("fps", rate)


def _prompt(place: int, row: object) -> Prompt:
    known = row if isinstance(row, dict) else {}
    texts = [known.get("id"), known.get("text")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(known.get("spec"), dict | None):
        raise InputError(f"prompt {place}: id and text must be strings, spec an object or null; found {str(row)[:80]}")
    return Prompt(*texts, spec=known.get("spec"))
