"""Weights that lie in shards on several processes (FSDP2), read and written as if they were whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: list[torch.Tensor]) -> bool:
    """Whether any of them lies in shards."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def shard_precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Weights gathered in ``dtype``; gradients reduced in fp32; inputs left as they are, autocast decides."""
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; every process must ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Whole copies on the CPU, one after another, for the process that keeps them; nothing for the others."""
    out = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            out[name] = gathered.cpu().contiguous()
    return out


@torch.no_grad()
def copy_whole(into: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a whole tensor, the same on every process, into one that may lie in shards."""
    if isinstance(into, DTensor):
        source = distribute_tensor(source.to(into.device), into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(source)


def like(whole_value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """A whole tensor, laid out as a reference of the same shape is; scalars stay whole."""
    if whole_value.shape != reference.shape:
        return whole_value
    out = torch.empty_like(reference, dtype=whole_value.dtype)
    copy_whole(out, whole_value)
    return out


@torch.no_grad()
def refill(network: torch.nn.Module, parameters: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """Copy weights, in shards, into a network's parameters, and free what it holds gathered of the former ones."""
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    for p, w in zip(parameters, weights, strict=True):
        p.copy_(w)
