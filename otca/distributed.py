"""What several processes of one run tell each other, and weights that lie in shards (FSDP2), handled as if they were whole."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from otca.errors import InputError

ROW = {"dead_groups": np.sum, "groups_with_constant_reward": np.sum, "first_ratio_deviation": np.max}
ROW |= {"advantage_rms": lambda column: np.sqrt(np.square(column).mean())}
"""How what processes log becomes one number, where it is not the mean."""


def process_state() -> PartialState:
    """accelerate's knowledge of the processes, whether or not a trainer was made before."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def usable_device(name: str) -> torch.device:
    """The device of that name; the process's own where it is empty. Raises InputError for one that cannot be used."""
    if not name:
        return process_state().device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu, cuda or cuda:0") from error
    return device


def launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def end_processes() -> None:
    """Leave the other processes, once no trainer is in scope: gloo's workers end here, before the interpreter does.

    A worker that still holds a tensor aborts a dying interpreter (https://github.com/pytorch/pytorch/issues/190489), and
    workers live on while anything, such as a network wrapped for several processes, refers to the group.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def is_main() -> bool:
    """Whether this process speaks and writes for all; asks accelerate only where a launcher was at work."""
    return not launched() or process_state().is_main_process


def asks_for_fsdp() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_launch(accelerator: Accelerator, dtype: torch.dtype) -> None:
    """Raise InputError where accelerate, without a word, does something else than the launcher asks for; set shards' precision.

    Weights in shards are gathered in ``dtype``, gradients reduced and inputs (noise levels) left in fp32: accelerate's own choice
    casts both to bf16, which has no number between 512 and 516. The flat weights of FSDP's first version cannot be read here.
    """
    kind, shipped, asked = accelerator.distributed_type, "otca/launch/eight_gpus_fsdp2.yaml", int(os.environ.get("WORLD_SIZE", 1))
    if asked != accelerator.num_processes:  # each would train alone
        said = f"WORLD_SIZE is {asked}, but accelerate sees {accelerator.num_processes} process; use `accelerate launch`"
        raise InputError(f"{said}, or, without a GPU, with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m otca train …")
    if asks_for_fsdp() and kind != DistributedType.FSDP:
        said = f"ACCELERATE_USE_FSDP asks for FSDP, but accelerate runs {kind.value}: every process would hold the whole model"
        raise InputError(f"{said}; launch on GPUs with {shipped}, or take FSDP out of your config")
    if kind != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise InputError(f"the launcher asks for version 1 of FSDP; set fsdp_version: 2 in its fsdp_config, as in {shipped}")
    accelerator.state.fsdp_plugin.mixed_precision_policy = shard_precision(dtype)


def total(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """Sum of a CPU tensor over all processes (`types.Total`)."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.to(accelerator.device), "sum").cpu()


def gathered(accelerator: Accelerator, values: dict[str, float]) -> np.ndarray:
    """The values of every process, one row each: float64 (processes, values)."""
    numbers = torch.tensor([list(values.values())], dtype=torch.float64, device=accelerator.device)
    return accelerator.gather(numbers).cpu().numpy()


def over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """What one process would have logged of all samples: see `ROW`; standard deviations are those of the whole."""
    if accelerator.num_processes == 1:
        return values
    table = dict(zip(values, gathered(accelerator, values).T))
    out = {name: float(ROW.get(name, np.mean)(column)) for name, column in table.items()}
    for name in (name.removeprefix("std_") for name in table if name.startswith("std_")):
        out[f"std_{name}"] = float(np.sqrt(np.square(table[f"std_{name}"]).mean() + table[f"reward_{name}"].var()))
    return out


# --------------------------------------------------------------------------------------------------------------- shards


def is_sharded(tensors: list[torch.Tensor]) -> bool:
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
