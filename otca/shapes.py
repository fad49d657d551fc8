"""A policy of shapes alone: its passes run on PyTorch's fake tensors, and memory and FLOPs are counted as they go by.

Networks are built from config files: those of a local pipeline, or of `PUBLISHED` checkpoints, so that nothing is downloaded.
Attention counts as fused attention does, which keeps no matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from otca import sampling
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.files import read_object, resolve_model
from otca.models.base import Policy, build_policy
from otca.models.loading import component_class, component_dtypes

PUBLISHED: dict[str, dict] = yaml.safe_load((Path(__file__).parent / "models/published.yaml").read_text())["checkpoints"]
"""Hub id → its pipeline's class, options, and ``component: [library, class, config]``."""
OPTIONS = ("boundary_ratio", "expand_timesteps", "is_distilled")
"""Settings of a pipeline that are no components."""


def empty_policy(config: PolicyConfig, dtype: torch.dtype | None = None) -> tuple[Policy, dict[str, nn.Module]]:
    """The policy of a config without weights (meta device), and its networks by name; ``dtype``: of all but the VAE, if given."""
    dtypes = component_dtypes(config) if dtype is None else {"vae": torch.float32, "default": dtype}
    pipeline = empty_pipeline(resolve_model(config.path), dtypes)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return build_policy(config, "meta", pipeline), parts


def empty_pipeline(path: str, dtypes: dict[str, torch.dtype], without: tuple[str, ...] = ()):
    """The pipeline with networks on the meta device, without tokenizers; ``dtypes``: by component, "default" for the others."""
    import diffusers

    parts = dict(PUBLISHED[path] if path in PUBLISHED else _read(path))
    loader = getattr(diffusers, parts.pop("pipeline"))
    options = {name: parts.pop(name) for name in OPTIONS if name in parts}
    made = {name: _build(*part, dtypes.get(name, dtypes["default"])) for name, part in parts.items() if name not in without}
    expected, _ = loader._get_signature_keys(loader)
    return loader(**{name: made.get(name) for name in sorted(expected)}, **options)


def _build(library: str, name: str, config: dict, dtype: torch.dtype):
    kind = component_class(library, name)
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
    what = f"policy.path {path}"
    if not (Path(path) / "model_index.json").is_file():
        raise InputError(f"{what}: its architecture is not known; give a local pipeline folder or one of {', '.join(PUBLISHED)}")
    content = read_object(Path(path) / "model_index.json", what)
    out = {"pipeline": content["_class_name"]} | {name: content[name] for name in OPTIONS if content.get(name) is not None}
    for name, part in content.items():
        if isinstance(part, list) and part[0] and "tokenizer" not in name and name != "processor":
            file = Path(path) / name / (f"{name}_config.json" if name in ("scheduler", "guider") else "config.json")
            out[name] = [*part, {key: v for key, v in read_object(file, what).items() if not key.startswith("_")}]
    return out


# ---------------------------------------------------------------------------------------------------------------- passes


class _ShapesOnly(FakeTensorMode):
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


class Pass(TorchDispatchMode):
    """Counts what runs within the block: FLOPs, and the bytes of the tensors made there that live at once, at most."""

    def __init__(self):
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = keywords or {}
        self.known.update(self._storages((arguments, keywords)))  # what comes in unseen was there before
        out = operation(*arguments, **keywords)
        if formula := flop_registry.get(operation._overloadpacket):
            self.flops += formula(*arguments, **keywords, out_val=out)
        for storage in self._storages(out):
            if storage not in self.known:
                self.known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return out

    def _storages(self, tree: object) -> list[torch.UntypedStorage]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    def _change(self, by: int) -> None:
        self.live += by
        self.peak = max(self.peak, self.live)


class _EmptyTexts:
    """Encoded prompts of the right shapes."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def get(self, texts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(torch.empty(shape, dtype=self.policy.dtype) for shape in self.policy.text_shapes()) for _ in texts]


def _fill(policy: Policy) -> None:
    """Replace what lies on the meta device by fake CPU tensors, with gradients already there."""
    parts = [policy.network, *(part for part in policy.pipeline.components.values() if isinstance(part, nn.Module))]
    stores = [store for part in parts for module in part.modules() for store in (module._parameters, module._buffers)]
    for store in [*stores, vars(policy)]:
        for name, value in store.items():
            if isinstance(value, torch.Tensor):
                store[name] = torch.empty(value.shape, dtype=value.dtype)
            if isinstance(value, nn.Parameter):
                store[name] = nn.Parameter(store[name], requires_grad=value.requires_grad)
                store[name].grad = torch.empty_like(value, device="cpu") if value.requires_grad else None
    policy.device, policy.texts = torch.device("cpu"), _EmptyTexts(policy)


def measure_passes(policy: Policy, config: TrainConfig, rows: int) -> tuple[Pass, Pass, Pass, int, int]:
    """Sampling, update and decoding of a micro-batch of an `empty_policy`, which is used up; bytes of a sample's latents, media.

    Recomputation counts; weights and their gradients do not.
    """
    sampler = config.sampler
    levels = tuple(sampling.sigmas_S(sampler.steps, sampler.shift or policy.shift)[1:3].tolist())
    sigma_B = torch.full((rows,), 0.95)  # a real tensor, since some adapters read noise levels to choose a network

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
        with Pass() as counted, torch.set_grad_enabled(gradient):
            run()
        return counted

    with _ShapesOnly(allow_non_fake_inputs=True), _NoPadding(), torch.no_grad():
        _fill(policy)
        forward, both = measured(lambda: transition(False)), measured(lambda: transition(True), gradient=True)
        x, media = latents(), []
        decode = measured(lambda: media.append(policy.decode(x)))
        return forward, both, decode, x.nbytes // rows, media[0].nbytes // rows
