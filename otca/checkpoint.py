"""Training state at iteration boundaries: trained weights, optimizer, average; hashed, renamed into place, verified."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from otca.errors import InputError
from otca.files import PARTIAL, flush_tree, verify_hashes, write_hashes
from otca.models.base import Policy
from otca.sharding import copy_whole, like, whole_on_cpu


@dataclass
class Progress:
    """How far a run is, what it cost so far over all processes, and what it counts towards its patience."""

    iteration: int = 0
    network_evaluations: int = 0
    reward_calls: int = 0
    skipped_in_a_row: int = 0
    constant_in_a_row: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    """State of fp16's gradient scaler; empty without one."""


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("iteration_*"))


def iteration_of(path: Path) -> int:
    """After how many iterations a checkpoint was written."""
    return int(path.name.removeprefix("iteration_"))


def prunable(found: list[int], every: int, last: int, best: int | None) -> list[int]:
    """Which of the iterations with a checkpoint, in ascending order, need none any more.

    Those stay that are the newest, the newest ``last`` of those that are multiples of ``every``, or the best in validation.
    """
    scheduled = [n for n in found if n % every == 0 or n == found[-1]]
    stay = {*found[-1:], *scheduled[-last:], best}
    return [n for n in found if n not in stay]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    copies: Mapping[str, list[torch.Tensor]],
    write: bool = True,
) -> Path:
    """Write ``checkpoints/iteration_<n>`` (the state after n iterations), unless it is there.

    ``copies`` are further weights that the run keeps, by name (averaged, lagged); empty ones are left out. Every process calls
    it, since weights may lie in shards; the main one is to ``write``. What is written is whole, however it was trained. Raises
    InputError where it cannot be written: older checkpoints are as they were.
    """
    target = folder / "checkpoints" / f"iteration_{progress.iteration:06d}"
    if target.exists():
        return target
    aside = target.with_name(f".{target.name}{PARTIAL}")
    states = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": torch.as_tensor(v) for index, s in states.items() for name, v in s.items()}
    files = {"optimizer": moments} | {name: {str(i): w for i, w in enumerate(kept)} for name, kept in copies.items() if kept}
    needed = _bytes(policy.trainable_parameters()) + sum(_bytes(tensors.values()) for tensors in files.values())
    try:
        if write:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if shutil.disk_usage(aside).free < needed:
                raise InputError(_no_room(target, needed, "there is less room"))
        policy.save(aside, write)
        for name, tensors in files.items():
            state = whole_on_cpu(tensors, write)
            if write:
                save_file(state, aside / f"{name}.safetensors")
        if not write:
            return target
        (aside / "state.json").write_text(json.dumps(dataclasses.asdict(progress)) + "\n")
        write_hashes(aside)
        flush_tree(aside)
        os.replace(aside, target)
        flush_tree(target.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(_no_room(target, needed, " ".join(str(error).split()))) from error
    finally:
        if write:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def load_checkpoint(
    path: Path, policy: Policy, optimizer: torch.optim.Optimizer, copies: Mapping[str, list[torch.Tensor]]
) -> Progress:
    """Restore a verified checkpoint in place and return how far it was."""
    verify_hashes(path)
    policy.load(path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    packed: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        packed.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, weights in copies.items():
        if not weights:
            continue
        if not (path / f"{name}.safetensors").is_file():
            raise InputError(f"checkpoint {path} holds no {name} weights, which this run keeps; start a new run")
        for i, weight in load_file(path / f"{name}.safetensors").items():
            copy_whole(weights[int(i)], weight)
    return Progress(**json.loads((path / "state.json").read_text()))


def load_weights(path: Path, policy: Policy, weights: str = "auto") -> bool:
    """Load a verified checkpoint's weights to sample from, as ``eval.weights`` says; whether they are the average.

    Raises InputError where the average is asked for and the run kept none.
    """
    policy.load(path)
    file = path / "average.safetensors"
    if not averages(weights, file.is_file(), str(path)):
        return False
    parameters = policy.trainable_parameters()
    for i, weight in load_file(file).items():
        copy_whole(parameters[int(i)], weight)
    return True


def averages(weights: str, kept: bool, what: str) -> bool:
    """Whether ``eval.weights`` means the average, of a run that keeps one or not. InputError where it is not there."""
    if weights == "average" and not kept:
        raise InputError(f"{what} has no averaged weights; train with optimizer.ema_decay, or use eval.weights raw")
    return kept and weights != "raw"


def latest_valid_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run whose hashes are right (None for a run without any), and what is wrong with newer ones.

    Raises InputError where there are checkpoints and none is whole.
    """
    integrity_errors = []
    for path in reversed(checkpoints(folder)):
        try:
            verify_hashes(path)
        except InputError as error:
            integrity_errors.append(str(error))
            continue
        return path, integrity_errors
    if integrity_errors:
        raise InputError(
            f"{folder}: no checkpoint is whole ({'; '.join(integrity_errors)}); restore one, or delete the folder to start anew"
        )
    return None, []


def remove_after(folder: Path, iteration: int) -> None:
    """Remove the checkpoints of later iterations, which a run that goes on from ``iteration`` makes anew."""
    for path in checkpoints(folder):
        if iteration_of(path) > iteration:
            shutil.rmtree(path)


def remove_prunable(folder: Path, every: int, last: int, best: int | None) -> None:
    """Remove the checkpoints that `prunable` names."""
    found = {iteration_of(path): path for path in checkpoints(folder)}
    for n in prunable(list(found), every, last, best):
        shutil.rmtree(found[n])


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _no_room(target: Path, needed: int, why: str) -> str:
    free = shutil.disk_usage(target.parents[1]).free
    return (
        f"checkpoint {target} needs {needed / 2**20:.1f} MiB and could not be written ({why}; {free / 2**20:.1f} MiB free, and "
        "ulimit -f may allow less); the older checkpoints are whole: make room and start the same command again"
    )
