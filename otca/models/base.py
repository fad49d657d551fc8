"""The policy contract: what rollout and trainer ask of a generator, whatever its family."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from otca.config import PolicyConfig
from otca.errors import InputError, one_line
from otca.files import resolve_model
from otca.sharding import is_sharded, refill
from otca.untrusted import read_object

FAMILIES = {
    "flux": ("FluxPipeline", "otca.models.flux:FluxPolicy"),
    "flux2": ("Flux2Pipeline", "otca.models.flux2:Flux2Policy"),
    "flux2_klein": ("Flux2KleinPipeline", "otca.models.flux2:Flux2KleinPolicy"),
    "sd3": ("StableDiffusion3Pipeline", "otca.models.sd3:Sd3Policy"),
    "qwen_image": ("QwenImagePipeline", "otca.models.qwen_image:QwenImagePolicy"),
    "qwen_image_21": ("QwenImage21Pipeline", "otca.models.qwen_image:QwenImage21Policy"),
    "z_image": ("ZImagePipeline", "otca.models.z_image:ZImagePolicy"),
    "wan": ("WanPipeline", "otca.models.wan:WanPolicy"),
    "hunyuan_video": ("HunyuanVideo15Pipeline", "otca.models.hunyuan_video:HunyuanVideoPolicy"),
    "ltx2": ("LTX2Pipeline", "otca.models.ltx2:Ltx2Policy"),
}
"""Family → its pipeline's class in model_index.json, and ``module:class`` of its adapter."""

PIPELINES = {pipeline: family for family, (pipeline, _) in FAMILIES.items()}
"""Pipeline class → family."""


class Policy(Protocol):
    """A rectified-flow generator. Latents have the model's own layout, (B, …), in fp32."""

    network: torch.nn.Module
    """The module that is trained (the trainer may wrap it)."""

    device: torch.device
    forwards_per_velocity: int
    """Network evaluations of one sample at one step: 1, or 2 with classifier-free guidance."""

    experts: int
    """Trained networks, of which one answers at each noise level."""

    shift: float
    """Time shift of the noise levels that the stock pipeline would use, where the settings leave it to the checkpoint."""

    protocol: dict[str, object]
    """What shapes its samples, for manifests: checkpoint and its hash, guidance, text length, frames."""

    def encode(self, texts: list[str]) -> object:
        """Encode prompts, one row a text: what `velocity` takes as its condition."""

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Told all texts that a run will ask for; may prepare them."""

    def sized(self, height: int, width: int) -> AbstractContextManager:
        """Samples of another size in pixels within the block; 0 keeps the own."""

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal latents (B, …), row b from generator b."""

    def velocity(self, latents: torch.Tensor, sigma_B: torch.Tensor, condition: object) -> torch.Tensor:
        """Velocity (noise − data) in fp32, guidance included."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Media (B, F, 3, H, W) in [0, 1], fp32."""

    def latent_grid(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, F, H, W) as the autoencoder sees them, but for scale and shift: an image has one latent frame."""

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer moves, in a fixed order."""

    def save(self, folder: Path, write: bool = True) -> None:
        """Write the trained part in the ecosystem's format (LoRA, or a transformer folder).

        Where weights lie in shards every process must call it, and one is to ``write``.
        """

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""


def build_policy(
    config: PolicyConfig, device: str | torch.device = "cpu", pipeline=None, networks_on: torch.device | None = None
) -> Policy:
    """Load the checkpoint with its family's adapter, or drive a pipeline that is there. InputError where no adapter does.

    ``networks_on``: where the trained networks stay if not on ``device``, as long as they are not in shards yet.
    """
    return adapter_of(family_of(config, pipeline))(config, torch.device(device), pipeline, networks_on)


def adapter_of(family: str) -> type:
    """The adapter's class of a key of `FAMILIES`."""
    module, _, name = FAMILIES[family][1].partition(":")
    return getattr(importlib.import_module(module), name)


def family_of(config: PolicyConfig, pipeline=None) -> str:
    """Key of `FAMILIES`, where the settings leave it open read from the checkpoint (or of a pipeline that is there).

    Raises InputError where no adapter drives it.
    """
    if config.family != "auto":
        return config.family
    name = type(pipeline).__name__ if pipeline else _pipeline_of(resolve_model(config.path), config.path)
    if name not in PIPELINES:
        raise InputError(f"policy.path {config.path} is a {name}; there are adapters for {', '.join(PIPELINES)}")
    return PIPELINES[name]


def _pipeline_of(folder: str, path: str) -> str:
    index = Path(folder) / "model_index.json"
    if Path(folder).is_dir():
        return read_object(index, f"policy.path {path}").get("_class_name")
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.load_config(folder).get("_class_name")
    except Exception as error:  # no such repository, no network, nothing in the cache
        raise InputError(f"policy.path {path}: neither a folder here nor a pipeline on the hub ({one_line(error)})") from error


@contextmanager
def swapped(network: torch.nn.Module, parameters: list[torch.nn.Parameter], weights: list[torch.Tensor]):
    """Let the network answer with other weights (reference, lagged or averaged ones) in the place of its parameters.

    Whole weights are exchanged without a copy. Those in shards are copied in and back, and what the network had gathered of
    them is given up, so that each forward and backward pass gathers what is there.
    """
    sharded = is_sharded(parameters)

    def fill(tensors: list[torch.Tensor]) -> None:
        if sharded:
            refill(network, parameters, tensors)
            return
        for p, tensor in zip(parameters, tensors, strict=True):
            p.data = tensor

    own = [p.detach().clone() if sharded else p.data for p in parameters]
    try:
        fill(weights)
        yield
    finally:
        fill(own)
