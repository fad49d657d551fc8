"""VideoAlign: a Qwen2-VL that watches a video and rates its looks, its motion and its agreement with the prompt.

One network gives the three ratings, each standardised by the published mean and deviation; their sum is the Overall score. The
four rewards share one loaded network, and on the same media one pass through it: at once, or one after another, as when a folder
is scored by one reward after the other and the network goes with each. Ratings stay, and then it need not come again.

Weights: KlingTeam/VideoReward (before: KwaiVGI/VideoReward) at 4f26600, Apache-2.0; configuration and tokenizer:
Qwen/Qwen2-VL-2B-Instruct at 895c3a4, Apache-2.0. Source: arXiv 2501.13918; preprocessing, positions and precision as in
inference.py, vision_process.py and train_reward.py of github.com/KwaiVGI/VideoAlign at 219ab9d, under transformers 4.45.2.

Axes: B videos, F frames, T frames that are looked at, L tokens, D features; 3 stands for VQ, MQ, TA.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

import torch

from otca.bounds import checked_rate
from otca.errors import InputError
from otca.files import stamp
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD, interpolate, to_pixels
from otca.rewards.published import Card, HubFile, PublishedReward
from otca.rewards.video_align_network import Network, load_network
from otca.rewards.video_align_prompt import PAD_TOKEN, REWARD_TOKENS, TEMPLATE, VIDEO_TOKEN, conversation
from otca.types import Prompt

WEIGHTS = "checkpoint-11352/model.pth"
_REVISION, _BASE_REVISION = "4f26600130683e6f1de9f5d463887f28e8ef995c", "895c3a49bc3fa70a340399125c650a463535e71c"
FILES = (
    HubFile("KlingTeam/VideoReward", WEIGHTS, 5_031_000_000, _REVISION),
    HubFile("KlingTeam/VideoReward", "model_config.json", 2_000, _REVISION),
    HubFile("Qwen/Qwen2-VL-2B-Instruct", "config.json", 1_000, _BASE_REVISION),
    HubFile("Qwen/Qwen2-VL-2B-Instruct", "tokenizer.json", 7_000_000, _BASE_REVISION),
)

DIMENSIONS = ("VQ", "MQ", "TA")

PATCH, MERGE, PAIR = 14, 2, 2
"""Pixels of a patch's side; patches of a merged patch's side; frames that a patch spans."""

SIDE = PATCH * MERGE
LEAST_PIXELS = 128 * SIDE * SIDE
"""Of a frame; the most is ``max_frame_pixels`` of model_config.json, 200704 as published."""

LEAST_FRAMES, MOST_FRAMES = 4, 768
WIDEST = 200
"""Longer side over shorter side."""

FPS = 16.0
"""Frames a second that videos are taken to have, unless told: Wan's. DanceGRPO writes its videos at 8."""

CHUNK = 4
"""Videos in one pass through the network."""

KEPT = 4096
"""Calls whose ratings are kept, about 1 kB each."""

_loaded: WeakValueDictionary[tuple, _Judge] = WeakValueDictionary()
_fitting: set[tuple] = set()
"""Files whose weights have been loaded in this process, by which they fit."""
_rated: OrderedDict[tuple, torch.Tensor] = OrderedDict()
"""Ratings (B, 3) by the judge's files and by the frames and texts of a call, the latest last."""


def frame_indices(frames: int, fps: float, sampled_fps: float = 2.0) -> list[int]:
    """Which frames of a video are looked at: an even number, from the first to the last at equal distances.

    Raises InputError for a single frame.
    """
    if frames < PAIR:
        raise InputError(f"VideoAlign takes videos of at least {PAIR} frames, not {frames}; use a reward for pictures")
    most = min(MOST_FRAMES, frames) // PAIR * PAIR
    wanted = min(max(frames / fps * sampled_fps, LEAST_FRAMES), most)
    return torch.linspace(0, frames - 1, round(wanted / PAIR) * PAIR).round().long().tolist()


def frame_size(height: int, width: int, most_pixels: int) -> tuple[int, int]:
    """Height and width at which frames are looked at: whole merged patches, with at most ``most_pixels`` pixels.

    Raises InputError where one side is more than 200 times the other.
    """
    if max(height, width) > WIDEST * min(height, width):
        raise InputError(f"VideoAlign takes frames at most {WIDEST} times as long as wide, not {height} × {width}")
    rows, columns = (max(1, round(side / SIDE)) for side in (height, width))
    if rows * columns * SIDE**2 > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        rows, columns = (math.floor(side / shrink / SIDE) for side in (height, width))
    elif rows * columns * SIDE**2 < LEAST_PIXELS:
        grow = math.sqrt(LEAST_PIXELS / (height * width))
        rows, columns = (math.ceil(side * grow / SIDE) for side in (height, width))
    return rows * SIDE, columns * SIDE


def patches(pixel_BTCHW: torch.Tensor) -> torch.Tensor:
    """Normalised patches of 8-bit frames in the order of Qwen2-VL: float32 (patches of all videos, 3·2·14·14).

    Patches that are merged into one follow one another; within a patch: channels, frames, rows, columns.
    """
    mean, std = (torch.tensor(v, device=pixel_BTCHW.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    value = (pixel_BTCHW.float() / 255 - mean) / std
    value = value.unflatten(4, (-1, MERGE, PATCH)).unflatten(3, (-1, MERGE, PATCH)).unflatten(1, (-1, PAIR))
    #      video, pair, frame, channel, (row, merge, y), (column, merge, x)
    return value.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(0, 5).flatten(1)


class _Judge:
    """The network with its tokenizer and settings; ``key`` tells its files and its device.

    Weights are loaded at once, or, where they are known to fit, with the first call whose ratings are not known.
    """

    def __init__(self, reward: str, files: Mapping[str, Path], device: torch.device, key: tuple):
        from tokenizers import Tokenizer
        from transformers import Qwen2VLConfig

        whole = json.loads(files["model_config.json"].read_text())
        settings = whole["peft_lora_config"] | whole["data_config"] | whole["inference_config"]
        if settings["prompt_template_type"] != TEMPLATE:
            raise InputError(
                f"reward {reward!r}: {files['model_config.json']} asks for the template {settings['prompt_template_type']!r}; "
                f"only the published {TEMPLATE!r} is known, fetch it again"
            )
        self.sampled_fps, self.most_pixels = settings["fps"], settings["max_frame_pixels"]
        self.mean_3, self.std_3 = (torch.tensor([settings[f"{d}_{k}"] for d in DIMENSIONS]) for k in ("mean", "std"))
        self.tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        self.tokenizer.add_special_tokens(list(REWARD_TOKENS))
        config = Qwen2VLConfig.from_dict(json.loads(files["config.json"].read_text()))
        self.token_3 = torch.tensor([self.tokenizer.token_to_id(token) for token in REWARD_TOKENS])
        self.video_token, self.pad_token = (self.tokenizer.token_to_id(token) for token in (VIDEO_TOKEN, PAD_TOKEN))
        if config.video_token_id != self.video_token:
            raise InputError(
                f"reward {reward!r}: {VIDEO_TOKEN} is {self.video_token} in {files['tokenizer.json']} and "
                f"{config.video_token_id} in {files['config.json']}; fetch both again"
            )
        config.text_config.vocab_size = self.tokenizer.get_vocab_size()
        self.device, self.key = device, key
        self._source = (reward, config, settings["lora_r"], settings["lora_alpha"], files[WEIGHTS], device)
        if key not in _fitting:
            self.network = load_network(*self._source)
            _fitting.add(key)

    @cached_property
    def network(self) -> Network:
        """Qwen2-VL with its head. Raises InputError for weights that do not fit."""
        return load_network(*self._source)

    def ratings(self, media_BFCHW: torch.Tensor, texts: list[str], fps: float) -> torch.Tensor:
        """Standardised ratings, float32 (B, 3) on the CPU; those of the same frames and texts are given again."""
        index_T = frame_indices(media_BFCHW.shape[1], fps, self.sampled_fps)
        pixel_BTCHW = to_pixels(media_BFCHW[:, index_T])
        seen = hashlib.blake2b(pixel_BTCHW.cpu().numpy().tobytes())
        seen.update(repr((tuple(pixel_BTCHW.shape), texts)).encode())
        call = (self.key, seen.hexdigest())
        rating_B3 = _rated.get(call)
        if rating_B3 is None:
            raw_B3 = torch.cat([self._raw(*part) for part in zip(pixel_BTCHW.split(CHUNK), _split(texts, CHUNK))])
            rating_B3 = _rated[call] = (raw_B3 - self.mean_3) / self.std_3
            while len(_rated) > KEPT:
                _rated.popitem(last=False)
        return rating_B3

    @torch.inference_mode()
    def _raw(self, pixel_BTCHW: torch.Tensor, texts: list[str]) -> torch.Tensor:
        videos, frames, _, height, width = pixel_BTCHW.shape
        height, width = frame_size(height, width, self.most_pixels)
        pixel_NCHW = interpolate(pixel_BTCHW.to(self.device).flatten(0, 1), height, width)
        grid_3 = (frames // PAIR, height // PATCH, width // PATCH)
        rows = [self._tokens(text, math.prod(grid_3) // MERGE**2) for text in texts]
        token_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token)
        length_B = torch.tensor([len(row) for row in rows])
        hidden_BLD = self.network(
            token_BL.to(self.device),
            (torch.arange(token_BL.shape[1]) < length_B[:, None]).long().to(self.device),
            patches(pixel_NCHW.unflatten(0, (videos, frames))),
            torch.tensor([grid_3] * videos, device=self.device),
        )
        hidden_B3D = hidden_BLD[torch.isin(token_BL, self.token_3).to(self.device)].unflatten(0, (videos, 3))
        # the published head answers in bfloat16, near its mean in steps of 1/64; in float32 close videos are not tied
        return (hidden_B3D.float() @ self.network.rm_head.weight.float().T).squeeze(-1).cpu()

    def _tokens(self, text: str, places: int) -> torch.Tensor:
        token_L = torch.tensor(self.tokenizer.encode(conversation(text, places), add_special_tokens=False).ids)
        read = token_L[torch.isin(token_L, self.token_3)]
        if not torch.equal(read, self.token_3) or (token_L == self.video_token).sum() != places:
            raise InputError(f"VideoAlign: the prompt {text[:60]!r} holds a token of its instruction, such as {VIDEO_TOKEN}")
        return token_L


def _split(texts: list[str], size: int) -> list[list[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


class _VideoAlign(PublishedReward):
    """What the four rewards share: a subclass names the ratings that it adds up."""

    parts: ClassVar[list[int]]
    _fps = FPS

    @property
    def fps(self) -> float:
        """Frames a second that media are taken to have, on which the choice of frames depends; set it to that of the videos.

        Raises InputError for what is no positive number.
        """
        return self._fps

    @fps.setter
    def fps(self, value: float) -> None:
        self._fps = checked_rate(f"reward {self.name!r}: fps", value)

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        key = (tuple(stamp(files[file.name]) for file in FILES), str(device))
        judge = _loaded.get(key)
        if judge is None:
            judge = _loaded[key] = _Judge(self.name, files, device, key)
        self._judge = judge

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Standardised scores, float32 (B,), of videos of at least 2 frames.

        Raises InputError for pictures, and for prompts that contain tokens of the instruction.
        """
        return self._judge.ratings(media_BFCHW, [prompt.text for prompt in prompts], self.fps)[:, self.parts].sum(1)


def _card(name: str, measures: str, spread: float) -> Card:
    return Card(
        name=name,
        measures=measures,
        modality="video",
        range=(-spread, spread),
        source="VideoAlign, arXiv 2501.13918; github.com/KwaiVGI/VideoAlign, inference.py",
        licence="Apache-2.0",
        memory=4.6,
        memory_cpu=9.1,
        files=FILES,
        folder="videoalign",
    )


class VisualQuality(_VideoAlign):
    """VQ: (rating − 3.6757) / 2.2476, of clearness, detail, composition and light, whatever moves."""

    card, parts = _card("videoalign_vq", "visual quality of the frames", 3.0), [0]


class MotionQuality(_VideoAlign):
    """MQ: (rating − 1.1646) / 1.3811, of steady, natural and ample motion."""

    card, parts = _card("videoalign_mq", "steady, natural and ample motion", 3.0), [1]


class TextAlignment(_VideoAlign):
    """TA: (rating − 2.8105) / 2.5121, of agreement with the prompt."""

    card, parts = _card("videoalign_ta", "agreement of the video with the prompt", 3.0), [2]


class Overall(_VideoAlign):
    """Overall: the sum of the three standardised ratings."""

    card, parts = _card("videoalign", "visual quality, motion and agreement with the prompt, added up", 9.0), [0, 1, 2]
    adds_up = ("videoalign_vq", "videoalign_mq", "videoalign_ta")
