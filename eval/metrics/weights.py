"""Weights of the metrics' networks: local files, told apart by SHA-256, read whole or refused, nothing but tensors unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from otca.errors import InputError, one_line
from otca.files import sha256
from otca.rewards.published import load_whole, read_weights


def digest_of(metric: str, path: Path, source: str) -> str:
    """SHA-256 of a file of weights. Raises InputError, saying where it is had from, where there is no such file."""
    if not path.is_file():
        raise InputError(f"metric {metric!r}: {path} not found; fetch it from {source}")
    return sha256(path)


def check_file(metric: str, path: Path, digests: Sequence[str], source: str) -> str:
    """SHA-256 of a file. Raises InputError unless it is among ``digests``, those of the files that VBench reads."""
    found = digest_of(metric, path, source)
    if found not in digests:
        known = " or ".join(f"{digest[:16]}…" for digest in digests)
        raise InputError(f"metric {metric!r}: {path} has SHA-256 {found[:16]}…, VBench's has {known}; fetch it from {source}")
    return found


def read_tensors(metric: str, path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU, as `otca.rewards.published.read_weights` reads them. Raises InputError for anything else."""
    with _of_metric():
        return read_weights(metric, path)


def read_archive(metric: str, path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, float32, of a TorchScript archive, as OpenAI publishes its CLIPs.

    An archive holds code, so only one whose SHA-256 is known is to be read. Raises InputError for what is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out; the files stay
            state = torch.jit.load(path, map_location="cpu").state_dict()
    except Exception as error:  # of damaged files, many kinds
        raise InputError(f"metric {metric!r}: {path} cannot be read ({one_line(error)}); fetch it again") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def fill(
    metric: str,
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    ours: Callable[[str], str] = str,
    theirs: Callable[[str], str] = str,
) -> nn.Module:
    """The module with these weights, in evaluation mode. Raises InputError naming what is missing, left over or misshapen.

    ``ours``, ``theirs``: names of tensors in the module and in the file, as `otca.rewards.published.load_whole` takes them.
    """
    with _of_metric():
        load_whole(metric, module, tensors, path, ours, theirs)
    return module.eval().requires_grad_(False)


@contextmanager
def _of_metric() -> Iterator[None]:
    """The readers speak of rewards."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("reward", "metric", 1)) from error
