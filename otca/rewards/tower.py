"""CLIP towers of open_clip: read from the files that the hub keeps of them, or refused.

The layout: ``open_clip_config.json``, which decides the architecture, the activation (OpenAI's and Apple's are QuickGELU),
the size and the preprocessing; the weights ``open_clip_model.safetensors`` or ``open_clip_pytorch_model.bin``; and tokenizer
files where the texts do not go through CLIP's own vocabulary. Axes: B samples, N pictures or texts, D features.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from otca.errors import InputError, one_line
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD, Preprocess
from otca.rewards.published import by_frames, load_whole, read_weights
from otca.types import Prompt

CHUNK = 32
"""Pictures or texts that go through a tower at a time."""

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Tower:
    """A CLIP of open_clip on its device; ``name``: open_clip's for the architecture, ``features``: D."""

    model: nn.Module
    tokenize: Callable[[list[str]], torch.Tensor]
    preprocess: Preprocess
    device: torch.device
    name: str
    features: int

    def images(self, media_NCHW: torch.Tensor) -> torch.Tensor:
        """Unit features (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        return self.model.encode_image(self.preprocess(media_NCHW.to(self.device)), normalize=True)

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Unit features (N, D) of texts, cut at the tower's context length."""
        return self.model.encode_text(self.tokenize(texts).to(self.device), normalize=True)


@torch.inference_mode()
def cosines(
    images: Callable[[torch.Tensor], torch.Tensor],
    texts: Callable[[list[str]], torch.Tensor],
    media_BFCHW: torch.Tensor,
    prompts: list[Prompt],
) -> torch.Tensor:
    """Cosine of each picture and its prompt, the mean over the frames of a video: float32 (B,).

    ``images`` and ``texts`` make unit features. Each distinct text is encoded once, however many samples and frames share it.
    """
    distinct = list(dict.fromkeys(prompt.text for prompt in prompts))
    row = {text: index for index, text in enumerate(distinct)}
    text_ND = torch.cat([texts(distinct[i : i + CHUNK]) for i in range(0, len(distinct), CHUNK)])

    def score(media_NCHW: torch.Tensor, of: list[str]) -> torch.Tensor:
        return (images(media_NCHW) * text_ND[[row[text] for text in of]]).sum(-1)

    return by_frames(score, media_BFCHW, [prompt.text for prompt in prompts], CHUNK)


def read_tower(reward: str, files: Mapping[str, Path], device: torch.device) -> Tower:
    """The tower that ``files`` (by name) are of. Raises InputError for one that does not fit or cannot be reproduced."""
    import open_clip

    path, weights = files[CONFIG], next(files[name] for name in WEIGHTS if name in files)
    config, preprocessing = _read_config(reward, path)
    name = next((n for n in open_clip.list_models() if open_clip.get_model_config(n) == config), "tower of another shape")
    model = _build(reward, path, config)
    preprocess = _preprocess(reward, path, preprocessing, model.visual.image_size)
    tokenize = _tokenizer(reward, path, config)
    load_whole(reward, model, _scalar(read_weights(reward, weights), model), weights)
    return Tower(model.to(device).eval(), tokenize, preprocess, device, name, config["embed_dim"])


def _read_config(reward: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture and the preprocessing that a configuration states."""
    try:
        content = json.loads(path.read_text())
        config, preprocessing = content["model_cfg"], dict(content.get("preprocess_cfg") or {})
        text, _, _ = dict(config["text_cfg"]), dict(config["vision_cfg"]), int(config["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"reward {reward!r}: {path} describes no tower of open_clip ({error!r}); fetch it again") from error
    foreign = "multimodal_cfg" if "multimodal_cfg" in config else text.get("hf_model_name")
    if foreign:
        raise InputError(
            f"reward {reward!r}: the tower of {path} has {foreign}, which is not supported; "
            "take one of an image and a text encoder of open_clip's own"
        )
    return config, preprocessing


def _build(reward: str, path: Path, config: dict[str, Any]) -> nn.Module:
    import open_clip

    config = copy.deepcopy(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    config["vision_cfg"].pop("timm_model_pretrained", None)  # it would fetch weights that are replaced here
    try:
        return kind(**config)
    except Exception as error:  # open_clip and timm raise many kinds
        raise InputError(f"reward {reward!r}: open_clip cannot build the tower of {path} ({one_line(error)})") from error


def _scalar(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Some files hold the logit scale and bias, which no cosine depends on, as a vector of one."""
    own = {key: value for key, value in model.state_dict().items() if key in ("logit_scale", "logit_bias")}
    fits = {k: weights[k].reshape(v.shape) for k, v in own.items() if k in weights and weights[k].numel() == 1}
    return weights | fits


def _tokenizer(reward: str, path: Path, config: dict[str, Any]) -> Callable[[list[str]], torch.Tensor]:
    """open_clip's own choice for the folder of the configuration."""
    import open_clip

    wanted = config["text_cfg"].get("hf_tokenizer_name")
    absent = [name for name in TOKENIZER if wanted and not (path.parent / name).is_file()]
    if absent:
        raise InputError(
            f"reward {reward!r}: the tower tokenizes with {wanted}, but {path.parent} lacks {' and '.join(absent)}; "
            "list them as files of the card, or put them there"
        )
    return open_clip.get_tokenizer(f"local-dir:{path.parent}")


def _preprocess(reward: str, path: Path, stated: dict[str, Any], size: int | tuple[int, int]) -> Preprocess:
    """What open_clip does to a picture at inference, with its defaults for what is not stated."""
    height, width = (size, size) if isinstance(size, int) else size
    usual = {
        "mode": "RGB",
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    cfg = usual | {key: value for key, value in stated.items() if value is not None}
    if cfg["interpolation"] == "random":  # of training; at inference open_clip takes bicubic
        cfg["interpolation"] = "bicubic"
    reproduced = {
        "mode": cfg["mode"] == "RGB",
        "mean": _three(cfg["mean"]),
        "std": _three(cfg["std"]),
        "interpolation": cfg["interpolation"] in ("bicubic", "bilinear"),
        "resize_mode": cfg["resize_mode"] in ("longest", "squash") or (cfg["resize_mode"] == "shortest" and height == width),
        "fill_color": cfg["fill_color"] == 0 or cfg["resize_mode"] != "longest",
    }
    for key, so in reproduced.items():
        if not so:
            raise InputError(
                f"reward {reward!r}: {path} asks for {key} {cfg[key]!r} at {height}×{width}, "
                "a preprocessing that is not reproduced here; take another tower"
            )
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    return Preprocess(height, width, cfg["interpolation"], cfg["resize_mode"], mean, std)


def _three(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3
