"""Training state at iteration boundaries: trained weights, optimizer, average; hashed, renamed into place, verified."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from otca.distributed import copy_whole, like, whole_on_cpu
from otca.errors import InputError, one_line, printable
from otca.files import folder_aside, hash_integrity_errors, read_object
from otca.models.base import Policy

Copies = Mapping[str, list[torch.Tensor]]
"""Further weights that a run keeps, by name (average, old_policy), in the order of the trained ones; lists may be empty."""


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
    prompts: str = ""
    """Hash of the list that the run trains on; empty in older runs."""


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first; copies of other names are passed over."""
    found = (folder / "checkpoints").glob("iteration_*")
    return sorted(path for path in found if re.fullmatch(r"iteration_[0-9]{6,}", path.name))


def iteration_of(path: Path) -> int:
    """After how many iterations a checkpoint was written."""
    return int(path.name.removeprefix("iteration_"))


def save_checkpoint(
    folder: Path, progress: Progress, policy: Policy, optimizer: torch.optim.Optimizer, copies: Copies, write: bool = True
) -> Path:
    """Write ``checkpoints/iteration_<n>``, whole, unless it is there; all processes call it, the main one is to ``write``."""
    target = folder / "checkpoints" / f"iteration_{progress.iteration:06d}"
    if target.exists():
        return target
    states = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": torch.as_tensor(v) for index, s in states.items() for name, v in s.items()}
    files = {"optimizer": moments} | {name: {str(i): w for i, w in enumerate(kept)} for name, kept in copies.items() if kept}
    try:
        with folder_aside(target, write) as aside:
            policy.save(aside, write)
            for name, tensors in files.items():
                state = whole_on_cpu(tensors, write)
                if write:
                    save_file(state, aside / f"{name}.safetensors")
            if write:
                (aside / "state.json").write_text(json.dumps(dataclasses.asdict(progress)) + "\n")
    except (OSError, SafetensorError) as error:
        free = f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free, and ulimit -f may allow less"
        said = f"checkpoint {target} could not be written ({printable(error)}; {free})"
        raise InputError(f"{said}; the older checkpoints are whole: make room and start the same command again") from error
    return target


def load_checkpoint(path: Path, policy: Policy, optimizer: torch.optim.Optimizer, copies: Copies) -> Progress:
    """Restore a verified checkpoint in place and return how far it was."""
    policy.load(path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    for name, weights in copies.items():
        if weights:
            _load_copies(path, name, weights)
    try:
        return Progress(**read_object(path / "state.json", "checkpoint"))
    except TypeError as error:
        raise InputError(f"checkpoint {path} is of another version ({one_line(error)}); go on with that one") from error


def load_weights(path: Path, policy: Policy, weights: str = "auto") -> bool:
    """Load a verified checkpoint's weights to sample from, as ``eval.weights`` says; whether they are the average."""
    policy.load(path)
    averaged = averages(weights, (path / "average.safetensors").is_file(), str(path))
    if averaged:
        _load_copies(path, "average", policy.trainable_parameters())
    return averaged


def _load_copies(path: Path, name: str, into: list[torch.Tensor]) -> None:
    file = path / f"{name}.safetensors"
    if not file.is_file():
        raise InputError(f"checkpoint {path} holds no {name} weights, which this run keeps; start a new run")
    for i, weight in load_file(file).items():
        copy_whole(into[int(i)], weight)


def averages(weights: str, kept: bool, what: str) -> bool:
    """Whether ``eval.weights`` means the average, of a run that keeps one or not. InputError where it is not there."""
    if weights == "average" and not kept:
        raise InputError(f"{what} has no averaged weights; train with optimizer.ema_decay, or use eval.weights raw")
    return kept and weights != "raw"


def latest_valid_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose hashes are right (None for a run without any), and what is wrong with newer ones."""
    damaged = []
    for path in reversed(checkpoints(folder)):
        found = hash_integrity_errors(path)
        if not found:
            return path, damaged
        damaged.append(found[0])
    if not damaged:
        return None, []
    said = f"{folder}: no checkpoint is whole ({'; '.join(damaged)})"
    raise InputError(f"{said}; restore one, or delete the folder to start anew")


def remove_prunable(folder: Path, every: int, last: int, best: int | None) -> None:
    """Remove all checkpoints but the newest, the newest ``last`` of multiples of ``every``, and the best in validation."""
    found = {iteration_of(path): path for path in checkpoints(folder)}
    newest = max(found, default=None)
    scheduled = [n for n in found if n % every == 0 or n == newest]
    for n in found.keys() - {newest, best, *scheduled[-last:]}:
        shutil.rmtree(found[n])
