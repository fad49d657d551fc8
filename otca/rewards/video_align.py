"""VideoAlign: a Qwen2-VL that watches a video and rates its looks, its motion and its agreement with the prompt.

One network gives the three ratings, each standardised by the published mean and deviation; their sum is the Overall score. The
four rewards share one loaded network, and on the same media one pass through it. Ratings stay, so that a folder may be scored by
one reward after the other, the network going with each: it need not come again.

Source: arXiv 2501.13918; preprocessing, positions and precision as in inference.py, vision_process.py and train_reward.py of
github.com/KwaiVGI/VideoAlign at 219ab9d, under transformers 4.45.2. The instruction (`video_align_prompt.txt`) is its template
``detailed_special``, on which the network was tuned, so every blank of it counts, also those at the ends of lines.

Axes: B videos, F frames, T frames that are looked at, L tokens, D features; 3 stands for VQ, MQ, TA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from otca.bounds import checked_rate
from otca.errors import InputError
from otca.files import stamp
from otca.rewards.pixels import to_pixels
from otca.rewards.published import CARDS, PublishedReward, load_whole, read_weights
from otca.types import Prompt

WEIGHTS = "checkpoint-11352/model.pth"
DIMENSIONS = ("VQ", "MQ", "TA")
TEMPLATE = "detailed_special"
INSTRUCTION = Path(__file__).with_name("video_align_prompt.txt").read_text(encoding="utf-8")
OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
"""Of the chat template of Qwen/Qwen2-VL-2B-Instruct, for one video and one text with a generation prompt."""
REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")  # at these the network is read, in this order
VIDEO_TOKEN, PAD_TOKEN = "<|video_pad|>", "<|endoftext|>"
"""The first stands for one merged patch: 2 × 2 patches of a pair of frames."""
PAIR, MERGE, SIDE = 2, 2, 28  # frames that a patch spans; patches of a merged patch's side; pixels of that side
LEAST_PIXELS = 128 * SIDE * SIDE
"""Of a frame; the most is ``max_frame_pixels`` of model_config.json, 200704 as published."""
LEAST_FRAMES, MOST_FRAMES = 4, 768
FPS = 16.0  # frames a second that videos are taken to have, unless told: Wan's. DanceGRPO writes its videos at 8.
CHUNK = 4  # videos in one pass through the network

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of the language model that carry a LoRA. It is applied, not merged: a merged weight would lose it to rounding."""
RENAMED = {
    "base_model.model.visual.": "model.visual.",
    "base_model.model.model.": "model.language_model.",
    "base_model.model.rm_head.": "rm_head.",
}
"""Beginnings of published keys → where transformers 5 keeps these layers."""
WORD_HEAD = "base_model.model.lm_head.weight"  # in the file, but no score depends on it

_loaded: WeakValueDictionary[tuple, _Judge] = WeakValueDictionary()
_fitting: set[tuple] = set()  # files whose weights have been loaded in this process, by which they fit
_rated: dict[tuple, torch.Tensor] = {}  # ratings (B, 3) by the judge's files and by the frames and texts of a call


def frame_indices(frames: int, fps: float, sampled_fps: float = 2.0) -> list[int]:
    """Which frames of a video are looked at: an even number, from the first to the last at equal distances."""
    if frames < PAIR:
        raise InputError(f"VideoAlign takes videos of at least {PAIR} frames, not {frames}; use a reward for pictures")
    most = min(MOST_FRAMES, frames) // PAIR * PAIR
    wanted = min(max(frames / fps * sampled_fps, LEAST_FRAMES), most)
    return torch.linspace(0, frames - 1, round(wanted / PAIR) * PAIR).round().long().tolist()


class Angles(torch.nn.Module):
    """The vision tower's rotary embedding as trained and published, in bfloat16: frequencies, angles, cosines and sines."""

    def __init__(self, frequency_D: torch.Tensor):
        super().__init__()
        self.register_buffer("frequency_D", frequency_D, persistent=False)

    def forward(self, hidden: torch.Tensor, position_N2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (position_N2.bfloat16()[..., None] * self.frequency_D.bfloat16()).flatten(1)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().float(), angle.sin().float()


class Network(torch.nn.Module):
    """A Qwen2-VL with LoRA and, instead of words, one number per token."""

    def __init__(self, config: Any, rank: int, alpha: int):
        from peft import LoraConfig, inject_adapter_in_model
        from transformers import Qwen2VLModel

        super().__init__()
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ADAPTED))
        self.model = inject_adapter_in_model(lora, Qwen2VLModel(config))
        self.rm_head = torch.nn.Linear(config.text_config.hidden_size, 1, bias=False)

    def forward(self, token_BL: torch.Tensor, real_BL: torch.Tensor, **video: torch.Tensor) -> torch.Tensor:
        """Features of every token (B, L, D), at positions 0, 1, 2 … for words and patches alike.

        Qwen2-VL has three-dimensional positions for patches; the published code never passed them on.
        """
        position_3BL = torch.arange(token_BL.shape[1], device=token_BL.device).expand(3, *token_BL.shape)
        out = self.model(input_ids=token_BL, attention_mask=real_BL, position_ids=position_3BL, use_cache=False, **video)
        return out.last_hidden_state


def load_network(reward: str, config: Any, rank: int, alpha: int, path: Path, device: torch.device) -> Network:
    """The network with the published weights: bfloat16 on CUDA as published, float32 on the CPU.

    The published code casts the rotary frequencies too, in training as in use; these are rounded so on every device: at a
    distance of 1,000 tokens the rounding turns an angle by up to two radians.
    """
    with torch.device("meta"):
        network = Network(config, rank, alpha)
    network = network.to(torch.bfloat16 if device.type == "cuda" else torch.float32).to_empty(device=device)
    text, vision = network.model.language_model, network.model.visual
    text.rotary_emb = type(text.rotary_emb)(config.text_config).to(device, torch.bfloat16)
    vision.rotary_pos_emb = Angles(type(vision.rotary_pos_emb)(config.vision_config).inv_freq.to(device))
    who = f"reward {reward!r}"
    weights = {key: value for key, value in read_weights(who, path).items() if key != WORD_HEAD}

    def own_name(key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in RENAMED.items() if key.startswith(old)), key)

    return load_whole(who, network, weights, path, own_name)


class _Judge:
    """The network with its tokenizer and settings; ``key`` tells its files and its device."""

    def __init__(self, reward: str, files: Mapping[str, Path], device: torch.device, key: tuple):
        from tokenizers import Tokenizer
        from transformers import Qwen2VLConfig, Qwen2VLVideoProcessor

        path = files["model_config.json"]
        whole = json.loads(path.read_text())
        settings = whole["peft_lora_config"] | whole["data_config"] | whole["inference_config"]
        if (other := settings["prompt_template_type"]) != TEMPLATE:
            said = f"{path} asks for the template {other!r}; only the published {TEMPLATE!r} is known, fetch it again"
            raise InputError(f"reward {reward!r}: {said}")
        self.sampled_fps, self.most_pixels = settings["fps"], settings["max_frame_pixels"]
        self.mean_3, self.std_3 = (torch.tensor([settings[f"{d}_{k}"] for d in DIMENSIONS]) for k in ("mean", "std"))
        self.tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        self.tokenizer.add_special_tokens(list(REWARD_TOKENS))
        self.processor = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=False)
        config = Qwen2VLConfig.from_dict(json.loads(files["config.json"].read_text()))
        self.token_3 = torch.tensor([self.tokenizer.token_to_id(token) for token in REWARD_TOKENS])
        self.video_token, self.pad_token = (self.tokenizer.token_to_id(token) for token in (VIDEO_TOKEN, PAD_TOKEN))
        config.text_config.vocab_size = self.tokenizer.get_vocab_size()
        self.device, self.key = device, key
        self._source = (reward, config, settings["lora_r"], settings["lora_alpha"], files[WEIGHTS], device)
        if key not in _fitting:
            self.network = load_network(*self._source)
            _fitting.add(key)

    @cached_property
    def network(self) -> Network:
        """Qwen2-VL with its head; once its weights are known to fit, loaded with the first call whose ratings are not known."""
        return load_network(*self._source)

    def ratings(self, media_BFCHW: torch.Tensor, texts: list[str], fps: float) -> torch.Tensor:
        """Standardised ratings, float32 (B, 3) on the CPU; those of the same frames and texts are given again."""
        pixel_BTCHW = to_pixels(media_BFCHW[:, frame_indices(media_BFCHW.shape[1], fps, self.sampled_fps)])
        seen = hashlib.blake2b(pixel_BTCHW.cpu().numpy().tobytes())
        seen.update(repr((tuple(pixel_BTCHW.shape), texts)).encode())
        call = (self.key, seen.hexdigest())
        if call not in _rated:
            firsts = range(0, len(texts), CHUNK)
            raw_B3 = torch.cat([self._raw(pixel_BTCHW[i : i + CHUNK], texts[i : i + CHUNK]) for i in firsts])
            _rated[call] = (raw_B3 - self.mean_3) / self.std_3
        return _rated[call]

    @torch.inference_mode()
    def _raw(self, pixel_BTCHW: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Ratings (B, 3) before they are standardised."""
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        try:
            size = smart_resize(*pixel_BTCHW.shape[3:], SIDE, LEAST_PIXELS, self.most_pixels)
        except ValueError as error:
            raise InputError(f"VideoAlign cannot take frames so long or so small ({error})") from error
        pixels = pixel_BTCHW.to(self.device).flatten(0, 1)
        pixels = transforms.resize(pixels, list(size), InterpolationMode.BICUBIC, antialias=True)
        video = self.processor(list(pixels.unflatten(0, pixel_BTCHW.shape[:2])), return_tensors="pt").to(self.device)
        places = int(video["video_grid_thw"][0].prod()) // MERGE**2
        rows = [self._tokens(text, places) for text in texts]
        token_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token)
        length_B = torch.tensor([len(row) for row in rows])
        real_BL = (torch.arange(token_BL.shape[1]) < length_B[:, None]).long()
        hidden_BLD = self.network(token_BL.to(self.device), real_BL.to(self.device), **video)
        hidden_B3D = hidden_BLD[torch.isin(token_BL, self.token_3).to(self.device)].unflatten(0, (-1, 3))
        # the published head answers in bfloat16, near its mean in steps of 1/64; in float32 close videos are not tied
        return (hidden_B3D.float() @ self.network.rm_head.weight.float().T).squeeze(-1).cpu()

    def _tokens(self, text: str, places: int) -> torch.Tensor:
        """The conversation about a video of so many merged patches, up to where an answer would begin."""
        said = f"{OPENING}{VIDEO_TOKEN * places}<|vision_end|>{INSTRUCTION.format(text_prompt=text)}{CLOSING}"
        token_L = torch.tensor(self.tokenizer.encode(said, add_special_tokens=False).ids)
        read = token_L[torch.isin(token_L, self.token_3)]
        if not torch.equal(read, self.token_3) or (token_L == self.video_token).sum() != places:
            raise InputError(f"VideoAlign: the prompt {text[:60]!r} holds a token of its instruction, such as {VIDEO_TOKEN}")
        return token_L


class _VideoAlign(PublishedReward):
    """What the four rewards share: a subclass names the ratings that it adds up."""

    parts: ClassVar[list[int]]
    fps = FPS
    """Frames a second that media are taken to have, on which the choice of frames depends; set it to that of the videos."""

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        key = (tuple(stamp(files[file.name]) for file in self.card.files), str(device))
        self._judge = _loaded.get(key) or _Judge(self.name, files, device, key)
        _loaded[key] = self._judge

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Standardised scores, float32 (B,), of videos of at least 2 frames."""
        fps = checked_rate(f"reward {self.name!r}: fps", self.fps)
        return self._judge.ratings(media_BFCHW, [prompt.text for prompt in prompts], fps)[:, self.parts].sum(1)


class VisualQuality(_VideoAlign):
    """VQ: (rating − 3.6757) / 2.2476, of clearness, detail, composition and light, whatever moves."""

    card, parts = CARDS["videoalign_vq"], [0]


class MotionQuality(_VideoAlign):
    """MQ: (rating − 1.1646) / 1.3811, of steady, natural and ample motion."""

    card, parts = CARDS["videoalign_mq"], [1]


class TextAlignment(_VideoAlign):
    """TA: (rating − 2.8105) / 2.5121, of agreement with the prompt."""

    card, parts = CARDS["videoalign_ta"], [2]


class Overall(_VideoAlign):
    """Overall: the sum of the three standardised ratings."""

    card, parts = CARDS["videoalign"], [0, 1, 2]
    adds_up = ("videoalign_vq", "videoalign_mq", "videoalign_ta")
