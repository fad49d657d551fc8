"""What several processes of one run tell each other: sums for the credit, and rows as one process would log them."""

from __future__ import annotations

import gc
import os

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

from otca.errors import InputError
from otca.sharding import shard_precision

COUNTED = ("dead_groups", "groups_with_constant_reward")
"""Diagnostics that are numbers of groups."""


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
    """Whether a launcher (accelerate, torchrun) started several processes."""
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


def check_split_launch(accelerator: Accelerator) -> None:
    """Raise InputError where a launcher started several processes and accelerate sees one: each would train alone."""
    launched, seen = int(os.environ.get("WORLD_SIZE", 1)), accelerator.num_processes
    if launched != seen:
        raise InputError(
            f"WORLD_SIZE is {launched}, but accelerate sees {seen} process; launch with `accelerate launch`, or, without a GPU, "
            "with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m otca train …"
        )


def asks_for_fsdp() -> bool:
    """Whether the launcher asks for weights in shards."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_dropped_plugin(accelerator: Accelerator) -> None:
    """Raise InputError where the launcher asks for sharding and accelerate, without a word, does something else, or shards as
    the first version of FSDP does, whose flat weights this trainer cannot read."""
    kind, shipped = accelerator.distributed_type, "otca/launch/eight_gpus_fsdp2.yaml"
    if asks_for_fsdp() and kind != DistributedType.FSDP:
        raise InputError(
            f"ACCELERATE_USE_FSDP asks for FSDP, but accelerate runs {kind.value}: every process would hold the whole model; "
            f"launch on GPUs with {shipped}, or take FSDP out of your config"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError(f"the launcher asks for version 1 of FSDP; set fsdp_version: 2 in its fsdp_config, as {shipped} does")


def keep_inputs_whole(accelerator: Accelerator, dtype: torch.dtype) -> None:
    """Shard as the whole model computes: weights are gathered in ``dtype``, gradients reduced and inputs (noise levels) in fp32.

    accelerate's own choice reduces and casts inputs to bf16, which has no number between 512 and 516.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
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
    """What one process would have logged of all samples: counts add up, deviations are of the whole, the rest are means."""
    if accelerator.num_processes == 1:
        return values
    table = dict(zip(values, gathered(accelerator, values).T))
    out = {name: float(column.mean()) for name, column in table.items()}
    for name, column in table.items():
        if name in COUNTED:
            out[name] = float(column.sum())
        elif name == "first_ratio_deviation":
            out[name] = float(column.max())
        elif name == "advantage_rms":
            out[name] = float(np.sqrt(np.square(column).mean()))
        elif name.startswith("std_"):
            of_means = table["reward_" + name.removeprefix("std_")]
            out[name] = float(np.sqrt(np.square(column).mean() + of_means.var()))
    return out
