"""What adapters of diffusers pipelines share: loading, encoding every text once, guidance in one batch, latents, decoding."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError, one_line
from otca.files import model_identity, model_notes, resolve_model
from otca.models.loading import INFERENCE, NETWORKS, TEXT_ENCODERS, check_distilled, load_pipeline
from otca.models.texts import Encoded, Parts, TextCache, encoders_identity
from otca.models.tuning import load_tuned, quiet_libraries, save_tuned, start_tuning
from otca.models.weights import apply_weights

ATTENTION = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
JOINT_ATTENTION = (*ATTENTION, *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")))
"""Attention projections, of one stream and of both, as diffusers' own LoRA examples target them."""


class Policy:
    """A rectified-flow generator, as rollout and trainer see it, and the base of the adapters.

    A family says how its pipeline differs: what a text is encoded to, the latents, one forward pass. Latents are drawn as
    diffusers draws them, (B, *latent_shape), and held as `_pack` lays them out, in fp32. ``network`` is what is trained (the
    trainer may wrap it), ``experts`` the number of trained networks, of which one answers at each noise level, and
    ``forwards_per_velocity`` counts network evaluations of one sample at one step: 2 with classifier-free guidance.
    """

    pipeline_class: ClassVar[str]
    """Name of the pipeline in diffusers."""
    lora_targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    """Modules that a LoRA adapts, as the ecosystem's LoRAs of the family have them."""
    longest_text: ClassVar[int] = 512
    """Text tokens of the family's stock pipeline, where neither settings nor checkpoint say."""
    text_outputs: ClassVar[tuple[int, ...]] = (0,)
    """Which results of the pipeline's `encode_prompt` make up an encoded prompt."""
    text_width: ClassVar[str] = "joint_attention_dim"
    """The transformer's setting for the width of an encoded prompt."""
    guidance_kind: ClassVar[str] = "true CFG"
    """How a prompt is made stronger, in words."""
    is_video: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    """Whether latents are held as the pipeline packs them: (B, N, 4·channels), N = (height/16)·(width/16) tokens."""
    latents_a_token: int = 4
    """Places of the latent grid that make one image token."""
    last_layer: ClassVar[str] = "proj_out"
    """The transformer's last layer, whose inputs are its `hidden_states`."""
    unit_time: ClassVar[bool] = False
    """Whether the transformer takes σ itself for the time, not σ times the scheduler's steps of training."""

    def __init__(self, config: PolicyConfig, device: torch.device, pipeline=None, networks_on: torch.device | None = None):
        """Load the checkpoint, or take a pipeline that is there, onto ``device``; the trained networks onto ``networks_on``."""
        import diffusers

        quiet_libraries()
        self.config, self.device = config, device
        self.folder = resolve_model(config.path)
        self.notes = model_notes(self.folder)
        self.loader, self.dtype = getattr(diffusers, self.pipeline_class), INFERENCE[config.precision]
        without = TEXT_ENCODERS if config.prompt_cache else ()
        self.pipeline = pipeline or load_pipeline(self.loader, self.folder, config, without)
        check_distilled(config, self.pipeline)
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
        self.true_guidance: float = config.true_guidance or self.notes.get("true_guidance", self._own_guidance())
        self.forwards_per_velocity = 2 if self.true_guidance > 1 else 1
        self.max_sequence_length = config.max_sequence_length or self.notes.get("max_sequence_length", self.longest_text)
        identity = f"{encoders_identity(self.folder)} {self.max_sequence_length} {self.dtype}"
        self.texts = TextCache(self._encode_texts, identity, config.prompt_cache, device)
        if isinstance(self.pipeline.vae, diffusers.AutoencoderKL):
            self.pipeline.vae.to(memory_format=torch.channels_last)  # decodes in 0.6 of the time on a processor
        if config.vae_slicing:
            self.pipeline.vae.enable_slicing()
        self.frames = (config.frames or self.notes.get("frames", 0)) if self.is_video else 1
        self._set_size(config.height, config.width)

    @property
    def protocol(self) -> dict[str, object]:
        """What shapes its samples, for manifests; ``guidance`` is the embedded one."""
        embeds = self.pipeline.transformer.config.get("guidance_embeds")
        return {
            "checkpoint": self.config.path,
            **({"weights": self.config.weights} if self.config.weights else {}),
            **model_identity(self.folder),
            "true_guidance": self.true_guidance,
            "max_sequence_length": self.max_sequence_length,
            **({"latent_shape": list(self.latent_shape)} if self.is_video else {}),
            **({"guidance": self.config.guidance if embeds else None} if embeds is not None else {}),
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

    def _set_size(self, height: int, width: int) -> None:
        """Set ``height`` and ``width`` in pixels and what depends on them. Raises InputError for a size that cannot be."""
        (time, space), side = self._compression(), self._side()
        if self.is_video and (self.frames < 1 or self.frames % time != 1):
            raise InputError(f"policy.frames is {self.frames}; {self.config.path} makes {time}·k + 1 frames, such as {time + 1}")
        if height % side or width % side:
            raise InputError(f"height × width is {height} × {width}; {self.config.path} makes multiples of {side} pixels a side")
        self.height, self.width = height, width
        self.latent_shape = self._latent_shape((self.frames - 1) // time + 1, height // space, width // space)

    def _compression(self) -> tuple[int, int]:
        """Frames and pixels a side of one latent, of the autoencoder."""
        if self.is_video:
            return self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        return 1, self.pipeline.vae_scale_factor

    def _side(self) -> int:
        """What height and width must be a multiple of: one token's pixels, for patches of two latents a side."""
        return 2 * self._compression()[1]

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of one sample's latents as they are drawn, from its size in latents."""
        channels = self.pipeline.transformer.config.in_channels // (4 if self.packed else 1)
        return (channels, frames, height, width) if self.is_video else (channels, height, width)

    def _tokens(self) -> int:
        return math.prod(self.latent_shape[1:]) // self.latents_a_token

    def _trained(self) -> list[str]:
        """Components of the pipeline that are trained, in a fixed order."""
        return ["transformer"]

    def _own_guidance(self) -> float:
        """Classifier-free guidance where neither settings nor the checkpoint's notes say."""
        return 1.0

    # ------------------------------------------------------------------------------------------------- conditioning

    def _encode_text(self, pipeline, text: str) -> Parts:
        """One encoded prompt, without a batch axis, by a pipeline that has its text encoders."""
        given = {"prompt": text, "prompt_2": None, "prompt_3": None, "device": self.device}
        given |= {"do_classifier_free_guidance": False, "max_sequence_length": self.max_sequence_length}
        known = inspect.signature(pipeline.encode_prompt).parameters
        results = pipeline.encode_prompt(**{name: value for name, value in given.items() if name in known})
        return tuple(results[i][0] for i in self.text_outputs)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt, the longest there is."""
        return ((self.max_sequence_length, self.pipeline.transformer.config[self.text_width]),)

    def encode(self, texts: list[str]) -> Encoded:
        """Encode prompts, one row a text; every distinct text is encoded once."""
        return Encoded(self.texts.get(texts))

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encode to disk all that a run will ask for, with ``policy.prompt_cache``: the encoders are in memory once."""
        if self.config.prompt_cache:
            self.texts.write(["", *texts])

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> Iterator[Parts]:
        """Encode one by one by the pipeline's own encoders; with a cache they are loaded for this call alone."""
        encoders = self.pipeline
        if self.config.prompt_cache:
            encoders = load_pipeline(self.loader, self.folder, self.config, NETWORKS).to(self.device)
        for text in texts:
            try:
                parts = self._encode_text(encoders, text)
            except (KeyError, TypeError, ValueError) as error:  # of tokenizers that lack a file
                said = f"its tokenizers and text encoders cannot encode a prompt ({one_line(error)})"
                raise InputError(f"policy.path {self.config.path}: {said}; fetch them again") from error
            for part, shape in zip(parts, self.text_shapes(), strict=True):
                if part.shape[1:] != shape[1:]:
                    said = f"encodes texts to width {part.shape[-1]}, but its transformer takes {shape[-1]}"
                    raise InputError(f"policy.path {self.config.path} {said}; its components are of different models")
            yield parts

    # ------------------------------------------------------------------------------------------------------ network

    def velocity(self, latents, sigma_B, condition: Encoded) -> torch.Tensor:
        """Velocity like the latents, in fp32; with guidance above 1 against the empty prompt, both in one batch."""
        expert, count = self._expert_at(sigma_B), len(latents)
        guidance = self._guidance_of(expert)
        if guidance <= 1:
            return self._cast_forward(latents, sigma_B, condition, expert)
        both = Encoded(self.encode([""] * count).rows + condition.rows)
        free, guided = self._cast_forward(torch.cat([latents] * 2), torch.cat([sigma_B] * 2), both, expert).split(count)
        return self._guided(free, guided, guidance)

    def _guided(self, free: torch.Tensor, guided: torch.Tensor, guidance: float) -> torch.Tensor:
        """Classifier-free guidance g: v_empty + g·(v − v_empty)."""
        return free + guidance * (guided - free)

    def _cast_forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """`_forward` in the precision asked for, whoever calls: training, evaluation and sampling compute alike."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._forward(latents, sigma_B, condition, expert).float()

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """One unguided forward pass: the velocity."""
        time = sigma_B if self.unit_time else sigma_B * self.pipeline.scheduler.config.num_train_timesteps
        given = {"hidden_states": latents.to(self.dtype), "timestep": time, "encoder_hidden_states": condition.parts[0]}
        if self.pipeline.transformer.config.get("guidance_embeds"):
            given["guidance"] = torch.full_like(sigma_B, self.config.guidance)
        return self.network(**given | self._inputs(latents, sigma_B, condition, expert), return_dict=False)[0]

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        """What the transformer takes besides, or instead."""
        return {}

    @property
    def hidden_width(self) -> int:
        """Dimensions of the hidden states."""
        last = self.pipeline.transformer.get_submodule(self.last_layer)
        return next(layer.in_features for layer in last.modules() if isinstance(layer, nn.Linear))

    @contextmanager
    def hidden_states(self) -> Iterator[list[torch.Tensor]]:
        """What the last layer is given in each forward pass within the block, mean over tokens: (B, D) in fp32 on the CPU.

        Where a second pass guides, in one batch with the first, the samples' own rows are the last ones.
        """
        kept: list[torch.Tensor] = []

        def keep(_, inputs: tuple[torch.Tensor]) -> None:
            kept.append(inputs[0].detach().float().mean(1).cpu())

        layers = [getattr(self.pipeline, name).get_submodule(self.last_layer) for name in self.trained]
        hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()

    def _expert_at(self, sigma_B) -> int:
        """Which of the trained networks answers at these noise levels."""
        return 0

    def _guidance_of(self, expert: int) -> float:
        """Classifier-free guidance of an expert; at most 1 is none."""
        return self.true_guidance

    # ------------------------------------------------------------------------------------------------------ latents

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal latents, row b from generator b (drawn on its device, in the shape in which diffusers draws them)."""
        drawn = [torch.randn((1, *self.latent_shape), generator=g, device=g.device) for g in generators]
        return self._pack(torch.cat(drawn)).to(self.device)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the transformer takes them, from those as they are drawn."""
        return self.pipeline._pack_latents(latents, len(latents), *self.latent_shape) if self.packed else latents

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, F, H, W); an image has one latent frame."""
        if self.packed:
            latents = self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)
        return latents if latents.dim() == 5 else latents.unsqueeze(2)

    @torch.no_grad()
    def decode(self, latents) -> torch.Tensor:
        """Media (B, F, 3, H, W) in [0, 1], fp32; an image has one frame."""
        media = self._decoded(self.latent_grid(latents)).float()
        return (media.unsqueeze(2) if media.dim() == 4 else media).div(2).add(0.5).clamp(0, 1).transpose(1, 2).contiguous()

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        """Media (B, 3, H, W) or (B, 3, F, H, W) in [−1, 1], of normalised latents."""
        vae, raw = self.pipeline.vae, grid_BCFHW
        if vae.config.get("latents_mean"):
            mean, std = (
                torch.tensor(vae.config[name], device=raw.device).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
            )
            raw = raw * std + mean
        else:
            raw = raw / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        has_frames = self.is_video or vae.config.get("z_dim")
        return vae.decode((raw if has_frames else raw.squeeze(2)).to(vae.dtype), return_dict=False)[0]

    # ------------------------------------------------------------------------------------------------------ weights

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that require a gradient, network by network, in module order."""
        return [p for name in self.trained for p in getattr(self.pipeline, name).parameters() if p.requires_grad]

    def save(self, folder: Path, write: bool = True) -> None:
        """LoRA: `load_lora_weights` reads the folder (alpha and rank in the metadata). Full: `folder/transformer/` …"""
        save_tuned(self.pipeline, self.trained, self.config.tuning, folder, write)

    def load(self, folder: Path) -> None:
        load_tuned(self.pipeline, self.trained, self.config.tuning, folder)
