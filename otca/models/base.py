"""Which adapter drives a checkpoint; and other weights in a network's place."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import torch

from otca.config import PolicyConfig
from otca.distributed import is_sharded, refill
from otca.errors import InputError, one_line
from otca.files import resolve_model
from otca.models.pipeline import Policy

FAMILIES = {
    "flux": ("FluxPipeline", "otca.models.flux:FluxPolicy"),
    "flux2": ("Flux2Pipeline", "otca.models.flux:Flux2Policy"),
    "flux2_klein": ("Flux2KleinPipeline", "otca.models.flux:Flux2KleinPolicy"),
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


def build_policy(
    config: PolicyConfig, device: str | torch.device = "cpu", pipeline=None, networks_on: torch.device | None = None
) -> Policy:
    """The policy of a config, or of a pipeline that is there; ``networks_on``: where networks stay until they lie in shards."""
    return adapter_of(family_of(config, pipeline))(config, torch.device(device), pipeline, networks_on)


def adapter_of(family: str) -> type:
    module, _, name = FAMILIES[family][1].partition(":")
    return getattr(importlib.import_module(module), name)


def family_of(config: PolicyConfig, pipeline=None) -> str:
    """Key of `FAMILIES`, read from the checkpoint's model_index.json. InputError where no adapter drives it."""
    if pipeline is None:
        from diffusers import DiffusionPipeline

        try:
            name = DiffusionPipeline.load_config(resolve_model(config.path))["_class_name"]
        except InputError:
            raise
        except Exception as error:  # no such repository, no network, nothing in the cache, a damaged model_index.json
            said = f"policy.path {config.path}: neither a pipeline's folder here nor one on the hub ({one_line(error)})"
            raise InputError(said) from error
    else:
        name = type(pipeline).__name__
    if name not in PIPELINES:
        raise InputError(f"policy.path {config.path} is a {name}; there are adapters for {', '.join(PIPELINES)}")
    return PIPELINES[name]


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
