"""What adapters of diffusers pipelines share: loading, encoding every text once, guidance in one batch, the trained weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.files import model_identity, model_notes, resolve_model
from otca.models.texts import Parts, TextCache, encoders_identity
from otca.models.tuning import apply_weights, load_tuned, quiet_libraries, save_tuned, start_tuning

INFERENCE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of what is not trained, and of the forward pass, by ``policy.precision``."""

NETWORKS = ("transformer", "transformer_2")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Components of the families' pipelines, as diffusers names them."""


def component_dtypes(config: PolicyConfig) -> dict[str, torch.dtype]:
    """By component: what is trained whole and the VAE are fp32, the rest ("default") is in inference dtype."""
    whole = dict.fromkeys(NETWORKS, torch.float32) if config.tuning == "full" else {}
    return whole | {"vae": torch.float32, "default": INFERENCE[config.precision]}


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts, one row a sample: tensors (B, …), in the order of the adapter's `_encode_text`."""

    parts: Parts


class PipelinePolicy(ABC):
    """Base of the adapters. A family says which pipeline, how a text is encoded, and what one forward pass is.

    Its constructor calls this one's, works out what it needs and takes the config's size by `_set_size`.
    """

    pipeline_class: ClassVar[str]
    """Name of the pipeline in diffusers."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Modules that a LoRA adapts, as the ecosystem's LoRAs of the family have them."""

    def __init__(self, config: PolicyConfig, device: torch.device, pipeline=None, networks_on: torch.device | None = None):
        """Load the checkpoint, or take a pipeline that is there, onto ``device``; the trained networks onto ``networks_on``."""
        import diffusers

        quiet_libraries()
        self.config, self.device = config, device
        self.folder = resolve_model(config.path)
        self.notes = model_notes(self.folder)
        self.loader, self.dtype = getattr(diffusers, self.pipeline_class), INFERENCE[config.precision]
        self.pipeline = pipeline or self._load(without=TEXT_ENCODERS if config.prompt_cache else ())
        self.trained = self._trained()
        self.experts = len(self.trained)
        if config.weights:
            apply_weights(self.pipeline, self.trained, config.weights)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                part.to(networks_on if networks_on is not None and name in self.trained else device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.networks = start_tuning(self.pipeline, self.trained, config, self.lora_targets)
        self.network: nn.Module = self.networks[0]
        self.true_guidance: float = config.true_guidance or self.notes.get("true_guidance", 1.0)
        self.forwards_per_velocity = 2 if self.true_guidance > 1 else 1
        self.max_sequence_length = config.max_sequence_length or self.notes.get("max_sequence_length", self._longest_text())
        shapes = f"{encoders_identity(self.folder)} {self.max_sequence_length} {self.dtype}"
        folder = Path(config.prompt_cache).expanduser() if config.prompt_cache else None
        self.texts = TextCache(self._encode_texts, shapes, folder, device)
        if config.vae_slicing:
            self.pipeline.vae.enable_slicing()

    def _load(self, without: tuple[str, ...]):
        """The pipeline less some components."""
        local = Path(self.folder).is_dir()
        present = self.loader.load_config(self.folder, local_files_only=local)
        left_out = {name: None for name in without if name in present}
        return self.loader.from_pretrained(self.folder, dtype=component_dtypes(self.config), local_files_only=local, **left_out)

    @property
    def protocol(self) -> dict[str, object]:
        """What shapes its samples, for manifests."""
        return {
            "checkpoint": self.config.path,
            **({"weights": self.config.weights} if self.config.weights else {}),
            **model_identity(self.folder),
            "true_guidance": self.true_guidance,
            "max_sequence_length": self.max_sequence_length,
        }

    @property
    def shift(self) -> float:
        """The scheduler's own time shift; with dynamic shifting e^μ, μ linear in the number of image tokens."""
        scheduler = self.pipeline.scheduler.config
        if not scheduler.get("use_dynamic_shifting"):
            return float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)
        few, many = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
        low, high = scheduler["base_shift"], scheduler["max_shift"]
        return math.exp(low + (high - low) * (self._tokens() - few) / (many - few))

    @contextmanager
    def sized(self, height: int, width: int):
        """Samples of another size in pixels within the block; 0 keeps the own."""
        own = self.height, self.width
        try:
            self._set_size(height or own[0], width or own[1])
            yield
        finally:
            self._set_size(*own)

    @abstractmethod
    def _set_size(self, height: int, width: int) -> None:
        """Set ``height`` and ``width`` in pixels and what depends on them. Raises InputError for a size that cannot be."""

    @abstractmethod
    def _tokens(self) -> int:
        """Image tokens of one sample."""

    def _trained(self) -> list[str]:
        """Components of the pipeline that are trained, in a fixed order."""
        return ["transformer"]

    @abstractmethod
    def _longest_text(self) -> int:
        """Text tokens of the family's stock pipeline, where neither settings nor checkpoint say."""

    @abstractmethod
    def _encode_text(self, pipeline, text: str) -> Parts:
        """One encoded prompt, without a batch axis, by a pipeline that has its text encoders."""

    @abstractmethod
    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt."""

    @abstractmethod
    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """One unguided forward pass: the velocity."""

    # ------------------------------------------------------------------------------------------------- conditioning

    def encode(self, texts: list[str]) -> Encoded:
        """Encode prompts, one row a text; every distinct text is encoded once."""
        return Encoded(tuple(torch.stack(part) for part in zip(*self.texts.get(texts))))

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encode to disk all that a run will ask for, with ``policy.prompt_cache``: the encoders are in memory once."""
        if self.config.prompt_cache:
            self.texts.write(["", *texts])

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> Iterator[Parts]:
        """Encode one by one by the pipeline's own encoders; with a cache they are loaded for this call alone."""
        encoders = self._load(without=(*NETWORKS, "vae")).to(self.device) if self.config.prompt_cache else self.pipeline
        for text in texts:
            yield self._encode_text(encoders, text)

    # ------------------------------------------------------------------------------------------------------ network

    def velocity(self, latents, sigma_B, condition: Encoded) -> torch.Tensor:
        """Velocity like the latents, in fp32; with guidance g above 1, v_empty + g·(v − v_empty), both in one batch."""
        expert, count = self._expert_at(sigma_B), len(latents)
        guidance = self._guidance_of(expert)
        if guidance <= 1:
            return self._cast_forward(latents, sigma_B, condition, expert)
        empty = self.encode([""] * count)
        both = Encoded(tuple(torch.cat(pair) for pair in zip(empty.parts, condition.parts)))
        free, guided = self._cast_forward(torch.cat([latents] * 2), torch.cat([sigma_B] * 2), both, expert).split(count)
        return free + guidance * (guided - free)

    def _cast_forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """`_forward` in the precision asked for, whoever calls: training, evaluation and sampling compute alike."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._forward(latents, sigma_B, condition, expert).float()

    def _expert_at(self, sigma_B) -> int:
        """Which of the trained networks answers at these noise levels."""
        return 0

    def _guidance_of(self, expert: int) -> float:
        """Classifier-free guidance of an expert; at most 1 is none."""
        return self.true_guidance

    def _draw(self, shape: tuple[int, ...], generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal (B, *shape) on the CPU or each generator's device, row b from generator b."""
        return torch.cat([torch.randn((1, *shape), generator=g, device=g.device) for g in generators])

    # ------------------------------------------------------------------------------------------------------ weights

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that require a gradient, network by network, in module order."""
        return [p for name in self.trained for p in getattr(self.pipeline, name).parameters() if p.requires_grad]

    def save(self, folder: Path, write: bool = True) -> None:
        """LoRA: `load_lora_weights` reads the folder (alpha and rank in the metadata). Full: `folder/transformer/` …"""
        save_tuned(self.pipeline, self.trained, self.config.tuning, folder, write)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote for the same tuning."""
        load_tuned(self.pipeline, self.trained, self.config.tuning, folder)


def decoded_images(vae: nn.Module, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Images (B, 1, 3, H, W) in [0, 1], fp32, of an AutoencoderKL with a shift factor (FLUX, SD3)."""
    scaled = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
    image_BCHW = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return (image_BCHW.float() / 2 + 0.5).clamp(0, 1).unsqueeze(1)
