"""A policy of shapes alone: its passes run on PyTorch's fake tensors, and memory and FLOPs are counted as they go by.

Attention counts as fused attention does, which keeps no matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from otca import sampling
from otca.architectures import empty_pipeline
from otca.config import PolicyConfig, TrainConfig
from otca.files import resolve_model
from otca.models.base import Policy, build_policy
from otca.sampling import sigmas_S


@dataclass(frozen=True)
class Passes:
    """Peak bytes of the passes of one micro-batch, beyond weights and gradients; bytes and FLOPs of one sample.

    ``flops``: "forward", "forward and backward" (recomputation included) and "decode".
    """

    sampling: int
    update: int
    decode: int
    latent_bytes: int
    media_bytes: int
    flops: dict[str, float]


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once, at most, among those made in the with-block."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave out what is there already."""
        self.known.update(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        out = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in self.known:
                self.known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return out

    def _change(self, by: int) -> None:
        self.live += by
        self.peak = max(self.peak, self.live)


# ------------------------------------------------------------------------------------------------- models of shapes alone


def empty_policy(config: PolicyConfig, dtypes: dict[str, torch.dtype]) -> tuple[Policy, dict[str, nn.Module]]:
    """The policy of a config without weights (meta device), and its networks by name, text encoders included."""
    pipeline = empty_pipeline(resolve_model(config.path), dtypes)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    policy = build_policy(config, "meta", pipeline)
    return policy, parts


class _EmptyTexts:
    """Encoded prompts of the right shapes."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype):
        self.shapes, self.dtype = shapes, dtype

    def get(self, texts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        """One encoding a text."""
        return [tuple(torch.empty(shape, dtype=self.dtype) for shape in self.shapes) for _ in texts]


def _fill(policy: Policy) -> None:
    """Replace what lies on the meta device by fake CPU tensors, with gradients already there."""
    modules = [policy.network, *(part for part in policy.pipeline.components.values() if isinstance(part, nn.Module))]
    for module in {id(m): m for root in modules for m in root.modules()}.values():
        for name, value in module._parameters.items():
            if value is not None:
                filled = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=value.requires_grad)
                filled.grad = torch.empty(value.shape, dtype=value.dtype) if value.requires_grad else None
                module._parameters[name] = filled
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    for name, value in vars(policy).items():
        if isinstance(value, torch.Tensor):
            setattr(policy, name, torch.empty(value.shape, dtype=value.dtype))
    policy.device, policy.texts = torch.device("cpu"), _EmptyTexts(policy.text_shapes(), policy.dtype)


# ---------------------------------------------------------------------------------------------------------------- passes


class _FakeTensors(FakeTensorMode):
    """PyTorch's fake tensors, without its pretence that there is a GPU.

    Where there is none the mode would pretend one for as long as the process lives: the next backward pass then starts a thread
    for it, after which no forked process can make a backward pass. Nothing here is on a GPU.
    """

    avoid_device_init = False


class _NoPadding(TorchFunctionMode):
    """Masks of texts as if every token were one, since what they hold is not known here."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.__bool__:
            return True
        mask = arguments[1] if function is torch.Tensor.__getitem__ else None
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            return arguments[0][:0] if hasattr(mask, "inverted") else arguments[0]
        out = function(*arguments, **(keywords or {}))
        if function is torch.Tensor.__invert__:
            out.inverted = True
        return out


def measure_passes(policy: Policy, config: TrainConfig, rows: int) -> Passes:
    """Run sampling, update and decoding of a micro-batch of an `empty_policy`, which is used up by it."""
    levels = tuple(sigmas_S(config.sampler.steps, config.sampler.shift or policy.shift)[1:3].tolist())
    with _FakeTensors(allow_non_fake_inputs=True), _NoPadding():
        _fill(policy)
        peaks = {}
        for gradient in (False, True):
            with PeakMemory() as memory, torch.set_grad_enabled(gradient):
                memory.ignore(_tensors(policy))
                _velocity_step(policy, config, rows, levels, gradient)
            peaks[gradient] = memory.peak
        with PeakMemory() as memory, torch.no_grad():
            memory.ignore(_tensors(policy))
            latents = _latents(policy, rows)
            media = policy.decode(latents)
            sizes = latents.nbytes // rows, media.nbytes // rows
        return Passes(peaks[False], peaks[True], memory.peak, *sizes, _flops(policy))


def _velocity_step(policy: Policy, config: TrainConfig, rows: int, levels: tuple[float, float], gradient: bool) -> None:
    """One transition of a micro-batch, with the gradient of its log-probability if asked for."""
    x, condition = _latents(policy, rows), policy.encode([""] * rows)
    velocity = policy.velocity(x, _levels(rows), condition)
    settings = config.sampler
    previous = torch.empty_like(x) if gradient else None
    noise = None if gradient else torch.empty_like(x)
    _, log_prob_B, _, _ = sampling.step(settings.kind, x, velocity, *levels, settings.level, noise=noise, prev=previous)
    if gradient:
        log_prob_B.mean().backward()


def _flops(policy: Policy) -> dict[str, float]:
    """FLOPs of one sample: a forward pass, a forward and backward pass (recomputation included), a decoding."""
    out = {}
    for name, gradient in (("forward", False), ("forward and backward", True)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradient):
            velocity = policy.velocity(_latents(policy, 1), _levels(1), policy.encode([""]))
            if gradient:
                velocity.mean().backward()
        out[name] = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.decode(_latents(policy, 1))
    return out | {"decode": float(counter.get_total_flops())}


def _latents(policy: Policy, rows: int) -> torch.Tensor:
    return policy.noise([torch.Generator() for _ in range(rows)])


def _levels(rows: int) -> torch.Tensor:
    """Noise levels as a real tensor, since some adapters read them to choose a network."""
    with unset_fake_temporarily():
        return torch.full((rows,), 0.95)


def _tensors(policy: Policy) -> list[torch.Tensor]:
    parts = [part for part in policy.pipeline.components.values() if isinstance(part, nn.Module)]
    weights = [p for part in parts for p in part.parameters()]
    return [*weights, *(p.grad for p in weights if p.grad is not None), *(b for part in parts for b in part.buffers())]
