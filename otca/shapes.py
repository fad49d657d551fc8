"""A policy of shapes alone: its passes run on PyTorch's fake tensors, and memory and FLOPs are counted as they go by.

Networks are built on the meta device from config files: those of a local pipeline, or of `PUBLISHED` checkpoints, so that nothing
is downloaded. Attention counts as fused attention does, which keeps no matrix of scores.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from otca import sampling
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.files import resolve_model
from otca.models.base import Policy, build_policy
from otca.sampling import sigmas_S
from otca.untrusted import read_object

PUBLISHED: dict[str, dict] = yaml.safe_load((Path(__file__).parent / "models/published.yaml").read_text())["checkpoints"]
"""Hub id → its pipeline's class, options, and ``component: [library, class, config]``."""

OPTIONS = ("boundary_ratio", "expand_timesteps", "is_distilled")
"""Settings of a pipeline that are no components."""


# ------------------------------------------------------------------------------------------------- models of shapes alone


def empty_pipeline(path: str, dtypes: dict[str, torch.dtype], without: tuple[str, ...] = ()):
    """The pipeline with every network on the meta device: shapes and dtypes, no weights and no tokenizers.

    ``dtypes``: by component, "default" for the others. Raises InputError for a hub id whose architecture is not known here.
    """
    import diffusers

    parts = dict(PUBLISHED[path] if path in PUBLISHED else _read(path))
    loader = getattr(diffusers, parts.pop("pipeline"))
    options = {name: parts.pop(name) for name in OPTIONS if name in parts}
    made = {name: _build(*part, dtypes.get(name, dtypes["default"])) for name, part in parts.items() if name not in without}
    expected, _ = loader._get_signature_keys(loader)
    return loader(**{name: made.get(name) for name in sorted(expected)}, **options)


def _build(library: str, name: str, config: dict, dtype: torch.dtype):
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    kind = getattr(importlib.import_module(module), name)
    if not issubclass(kind, nn.Module):
        return kind.from_config(config)
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return kind(kind.config_class(**config)) if library == "transformers" else kind.from_config(config)
    finally:
        torch.set_default_dtype(former)


def _read(path: str) -> dict:
    """What `PUBLISHED` would hold of a local pipeline folder; tokenizers are left out."""
    index = Path(path) / "model_index.json"
    if not index.is_file():
        known = f"give a local pipeline folder or one of {', '.join(PUBLISHED)}"
        raise InputError(f"policy.path {path}: its architecture is not known; {known}")
    content = read_object(index, f"policy.path {path}")
    out = {"pipeline": content["_class_name"]} | {name: content[name] for name in OPTIONS if content.get(name) is not None}
    for name, value in content.items():
        if not isinstance(value, list) or len(value) != 2 or value[0] is None or "tokenizer" in name or name == "processor":
            continue
        library, kind = value
        if library not in ("diffusers", "transformers", "ltx2"):
            raise InputError(f"policy.path {path}: its {name} is of the library {library!r}, of which nothing is built")
        file = Path(path) / name / (f"{name}_config.json" if name in ("scheduler", "guider") else "config.json")
        config = read_object(file, f"policy.path {path}")
        out[name] = [library, kind, {key: v for key, v in config.items() if not key.startswith("_")}]
    return out


def empty_policy(config: PolicyConfig, dtypes: dict[str, torch.dtype]) -> tuple[Policy, dict[str, nn.Module]]:
    """The policy of a config without weights (meta device), and its networks by name, text encoders included."""
    pipeline = empty_pipeline(resolve_model(config.path), dtypes)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return build_policy(config, "meta", pipeline), parts


class _EmptyTexts:
    """Encoded prompts of the right shapes."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype):
        self.shapes, self.dtype = shapes, dtype

    def get(self, texts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        """One encoding a text."""
        return [tuple(torch.empty(shape, dtype=self.dtype) for shape in self.shapes) for _ in texts]


def _fill(policy: Policy) -> list[torch.Tensor]:
    """Replace what lies on the meta device by fake CPU tensors, with gradients already there; returns all that is held."""
    parts = [policy.network, *(part for part in policy.pipeline.components.values() if isinstance(part, nn.Module))]
    for tensors in (store for part in parts for module in part.modules() for store in (module._parameters, module._buffers)):
        for name, value in tensors.items():
            if value is not None:
                filled = torch.empty(value.shape, dtype=value.dtype)
                parameter = isinstance(value, nn.Parameter)
                tensors[name] = nn.Parameter(filled, requires_grad=value.requires_grad) if parameter else filled
    for name, value in vars(policy).items():
        if isinstance(value, torch.Tensor):
            setattr(policy, name, torch.empty(value.shape, dtype=value.dtype))
    policy.device, policy.texts = torch.device("cpu"), _EmptyTexts(policy.text_shapes(), policy.dtype)
    held = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    for tensor in (tensor for tensor in held if tensor.requires_grad):
        tensor.grad = torch.empty_like(tensor)
    return held + [tensor.grad for tensor in held if tensor.grad is not None]


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


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once, at most, among those made in the with-block; ``held`` are there already."""

    def __init__(self, held: Iterable[torch.Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

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


@dataclass(frozen=True)
class Pass:
    """A pass of one micro-batch: peak bytes beyond weights and gradients, and FLOPs of one sample (recomputation included)."""

    peak: int
    flops: float


def measure_passes(policy: Policy, config: TrainConfig, rows: int) -> tuple[Pass, Pass, Pass, int, int]:
    """Sampling, update, decoding of a micro-batch of an `empty_policy`, which is used up; bytes of a sample's latents, media."""
    sampler = config.sampler
    levels = tuple(sigmas_S(sampler.steps, sampler.shift or policy.shift)[1:3].tolist())
    with unset_fake_temporarily():  # a real tensor, since some adapters read noise levels to choose a network
        sigma_B = torch.full((rows,), 0.95)

    def latents() -> torch.Tensor:
        return policy.noise([torch.Generator() for _ in range(rows)])

    def transition(gradient: bool) -> None:
        """One transition, with the gradient of its log-probability if asked for."""
        x = latents()
        velocity = policy.velocity(x, sigma_B, policy.encode([""] * rows))
        given = {"prev": torch.empty_like(x), "noise": None} if gradient else {"prev": None, "noise": torch.empty_like(x)}
        _, log_prob_B, _, _ = sampling.step(sampler.kind, x, velocity, *levels, sampler.level, **given)
        if gradient:
            log_prob_B.mean().backward()

    def measured(run: Callable[[], object], gradient: bool = False) -> Pass:
        with PeakMemory(held) as memory, torch.set_grad_enabled(gradient):
            run()
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradient):  # it holds tensors, so apart
            run()
        return Pass(memory.peak, counter.get_total_flops() / rows)

    with _FakeTensors(allow_non_fake_inputs=True), _NoPadding():
        held = _fill(policy)
        forward, both = measured(lambda: transition(False)), measured(lambda: transition(True), gradient=True)
        decode = measured(lambda: policy.decode(latents()))
        with torch.no_grad():
            x = latents()
            return forward, both, decode, x.nbytes // rows, policy.decode(x).nbytes // rows
