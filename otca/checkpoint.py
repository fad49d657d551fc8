"""Training state at iteration boundaries: trained weights, optimizer, average; hashed, renamed into place, verified."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from otca.errors import InputError
from otca.files import verify_hashes, write_hashes
from otca.policies.base import Policy
from otca.sharding import copy_whole, like, whole_on_cpu

KEPT = 2
"""Checkpoints that stay: the newest ones."""


@dataclass
class Progress:
    """How far a run is: iterations done, and what they cost so far over all processes."""

    iteration: int = 0
    network_evaluations: int = 0
    reward_calls: int = 0


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("iteration_*"))


def save_checkpoint(
    folder: Path,
    progress: Progress,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    copies: dict[str, list[torch.Tensor]],
    write: bool = True,
) -> Path:
    """Write ``checkpoints/iteration_<n>`` (the state after n iterations); older ones beyond `KEPT` are removed.

    ``copies`` are further weights that the run keeps, by name (averaged, lagged); empty ones are left out. Every process calls
    it, since weights may lie in shards; the main one is to ``write``. What is written is whole, however it was trained.
    """
    target = folder / "checkpoints" / f"iteration_{progress.iteration:06d}"
    if target.exists():
        return target
    aside = target.with_name(f".{target.name}.partial")
    if write:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    policy.save(aside, write)
    states = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": torch.as_tensor(v) for index, s in states.items() for name, v in s.items()}
    files = {"optimizer": moments} | {name: {str(i): w for i, w in enumerate(kept)} for name, kept in copies.items() if kept}
    for name, tensors in files.items():
        state = whole_on_cpu(tensors, write)
        if write:
            save_file(state, aside / f"{name}.safetensors")
    if not write:
        return target
    (aside / "state.json").write_text(json.dumps(dataclasses.asdict(progress)) + "\n")
    write_hashes(aside)
    os.replace(aside, target)
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    path: Path, policy: Policy, optimizer: torch.optim.Optimizer, copies: dict[str, list[torch.Tensor]]
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
