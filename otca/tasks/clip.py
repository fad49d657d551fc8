"""A small open_clip model of the scenes, for held-out evaluation alone: CLIP score, kernel distance, diversity.

The checkpoint is a folder that open_clip's own factory loads (``open_clip.create_model("local-dir:<folder>")``), with its
tokenizer (``open_clip.get_tokenizer("local-dir:<folder>")``). Trained by `reproduce/pretrain/clip.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from otca.types import Prompt

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
_CHUNK = 64
"""Images or texts a forward pass."""


class EmbeddedClip:
    """An open_clip model with its tokenizer and configuration (``model_cfg`` and ``preprocess_cfg``, as in the file)."""

    def __init__(self, model: torch.nn.Module, tokenizer, config: dict):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        preprocess = config["preprocess_cfg"]
        self._mean_CHW = torch.tensor(preprocess["mean"]).view(3, 1, 1)
        self._std_CHW = torch.tensor(preprocess["std"]).view(3, 1, 1)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EmbeddedClip:
        """Load a checkpoint folder through open_clip. Raises FileNotFoundError naming the file that is missing."""
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"embedded CLIP: {folder / name} not found; train it with python -m reproduce.pretrain_embedded"
                )
        return cls._from_folder(folder, load_weights=True)

    @classmethod
    def untrained(cls, folder: str | Path, config: dict, tokenizer) -> EmbeddedClip:
        """A new model of a configuration; writes the configuration and the (transformers) tokenizer to the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        return cls._from_folder(folder, load_weights=False)

    @classmethod
    def _from_folder(cls, folder: Path, load_weights: bool) -> EmbeddedClip:
        import open_clip

        name = f"local-dir:{folder}"
        model = open_clip.create_model(name, load_weights=load_weights, require_pretrained=load_weights)
        return cls(model, open_clip.get_tokenizer(name), json.loads((folder / CONFIG_NAME).read_text()))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `from_pretrained` and open_clip's factory read."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / WEIGHTS_NAME)

    def normalize(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1] with the mean and deviation of ``preprocess_cfg``, as open_clip's own transform does."""
        return (image_BCHW - self._mean_CHW.to(image_BCHW)) / self._std_CHW.to(image_BCHW)

    @torch.no_grad()
    def image_features(self, media_BFCHW: torch.Tensor) -> torch.Tensor:
        """L2-normalised features (B, D) float32 of images (B, 1, 3, H, W) in [0, 1], H and W those of the model.

        Raises ValueError for other shapes and for values that are not finite.
        """
        side = self.config["model_cfg"]["vision_cfg"]["image_size"]
        if media_BFCHW.ndim != 5 or tuple(media_BFCHW.shape[1:]) != (1, 3, side, side):
            raise ValueError(f"embedded CLIP: media must be (B, 1, 3, {side}, {side}), got {tuple(media_BFCHW.shape)}")
        if not torch.isfinite(media_BFCHW).all():
            raise ValueError("embedded CLIP: media holds NaN or Inf")
        image_BCHW = self.normalize(media_BFCHW[:, 0].to(self.model.logit_scale))
        return torch.cat([self.model.encode_image(chunk, normalize=True) for chunk in image_BCHW.split(_CHUNK)])

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        """L2-normalised features (B, D) float32 of captions."""
        tokens = self.tokenizer(list(texts)).to(self.model.logit_scale.device)
        return torch.cat([self.model.encode_text(chunk, normalize=True) for chunk in tokens.split(_CHUNK)])

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Cosine of each image and its prompt's text: (B,) float32 in [-1, 1], higher is better."""
        if len(prompts) != len(media_BFCHW):
            raise ValueError(f"embedded CLIP: {len(media_BFCHW)} images but {len(prompts)} prompts")
        return (self.image_features(media_BFCHW) * self.text_features([p.text for p in prompts])).sum(-1)
