"""Speed and memory of a model of published size with random weights: nothing is downloaded, no reward model is needed.

    python -m reproduce.speed_large --preset image/flux-lora                        on a GPU: FLUX.1-dev's size at 512 px
    python -m reproduce.speed_large --preset image/quick --gpu none --iterations 2  the same on the embedded model, anywhere

Writes results/speed/<model>-<device>.json: seconds an iteration by phase, peak memory beside the planned one, and the share of
the GPU's bf16 TFLOP/s that forward, backward and decoding passes reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from baselines import find_method
from otca import presets
from otca.architectures import empty_pipeline
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.files import resolve_model, write_atomic
from otca.models.base import Policy, build_policy
from otca.models.pipeline import TEXT_ENCODERS, component_dtypes
from otca.plan import GPUS, plan
from otca.signals import run_command
from otca.trainer import Trainer
from otca.types import Prompt

FOLDER = Path("results/speed")
PHASES = ("sampling", "decode", "rewards", "credit", "update", "total")


class Brightness:
    """A reward that costs nothing: the mean of the pixels."""

    name, range, source, licence, revision = "brightness", (0.0, 1.0), "this repository", "Apache-2.0", "1"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Mean of each sample's pixels, float32 (B,)."""
        return media_BFCHW.flatten(1).mean(1)


class RandomTexts:
    """Encoded prompts of the right shapes, one draw for all texts."""

    def __init__(self, policy: Policy):
        draw = torch.Generator().manual_seed(0)
        parts = (torch.randn(shape, generator=draw) for shape in policy.text_shapes())
        self.parts = tuple(part.to(policy.device, policy.dtype) for part in parts)

    def get(self, texts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        """The same encoding for every text."""
        return [self.parts] * len(texts)

    def write(self, texts: list[str]) -> None:
        """Nothing is to be prepared."""


def random_policy(config: PolicyConfig, device: torch.device, networks_on: torch.device | None = None) -> Policy:
    """The policy of a config with weights drawn at random on the device, and without text encoders.

    ``networks_on`` is for shards, which this measurement does not have.
    """
    pipeline = empty_pipeline(resolve_model(config.path), component_dtypes(config), without=TEXT_ENCODERS)
    torch.manual_seed(0)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to_empty(device=device)
            with torch.no_grad():
                for name, weight in [*part.named_parameters(), *part.named_buffers()]:
                    if not weight.is_floating_point():
                        weight.zero_()
                    elif weight.dim() > 1:
                        weight.normal_(std=0.02)
                    else:
                        weight.fill_(float("norm" in name and name.endswith("weight")))
    policy = build_policy(config, device, pipeline)
    policy.texts = RandomTexts(policy)
    return policy


def measure(config: TrainConfig, gpu: str, iterations: int, folder: Path) -> dict[str, object]:
    """Train ``iterations`` after one that does not count; returns means by phase, memory and utilisation."""
    method, cuda = find_method(config.method), torch.cuda.is_available()
    trained_alone = {"prompt_cache": "no text encoders here"}  # `random_policy` has none
    planned = plan(_changed(config, **trained_alone), method)
    useful = plan(_changed(config, **trained_alone, gradient_checkpointing=False), method)  # recomputation is no progress
    trainer = Trainer(config, method, folder, make_policy=random_policy)
    trainer.step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rows = []
    for _ in range(iterations):
        started = _now(cuda)
        trainer.step()
        rows.append(trainer.seconds | {"total": _now(cuda) - started})
    means = pd.DataFrame(rows).mean()
    flops, gpu = sum(useful.flops.values()), _known(gpu)
    return {
        "model": config.policy.path,
        "tuning": config.policy.tuning,
        "precision": config.policy.precision,
        "pixels": [config.policy.height, config.policy.width],
        "samples": config.prompts_per_iteration * config.group_size,
        "steps": config.sampler.steps,
        "micro_batch": trainer.micro_batch,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "iterations": iterations,
        "seconds": {phase: round(float(means[phase]), 4) for phase in PHASES},
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None,
        "planned_memory_gib": round(max(planned.sampling_peak, planned.update_peak) / 2**30, 3),
        "tflop_an_iteration": round(flops / 1e12, 3),
        "utilisation": round(flops / means["total"] / (GPUS[gpu][1] * 1e12), 4) if gpu in GPUS else None,
        "gpu": gpu,
    }


def _changed(config: TrainConfig, **policy: object) -> TrainConfig:
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, **policy))


def _known(gpu: str) -> str:
    """The name in `GPUS` of the GPU that is here, where none is given: "none" for one that is not known."""
    if gpu != "auto":
        return gpu
    found = torch.cuda.get_device_name().lower().replace(" ", "") if torch.cuda.is_available() else ""
    return next((name for name in GPUS if name in found), "none")


def _now(cuda: bool) -> float:
    """The clock, once the GPU has done what it was told."""
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write, print; exit code 2 with one line where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.speed_large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="image/flux-lora", help="settings to measure (default: image/flux-lora)")
    parser.add_argument("--gpu", default="auto", help=f"whose TFLOP/s count: {', '.join(GPUS)}, or none (default: the one here)")
    parser.add_argument("--iterations", type=int, default=3, help="iterations that count, after one that does not (default: 3)")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder for the JSON (default: {FOLDER})")
    args = parser.parse_args(argv)
    return run_command("speed_large", lambda: _make(args.preset, args.gpu, args.iterations, args.out))


def _make(preset: str, gpu: str, iterations: int, out: Path) -> None:
    """Measure, write and print."""
    if gpu not in (*GPUS, "none", "auto"):
        raise InputError(f"gpu is {gpu!r}; choose from {', '.join(GPUS)}, none or auto")
    settings = {"rewards": ["reproduce.speed_large:Brightness"], "prompts": "embedded:image/train", "policy.prompt_cache": ""}
    config = presets.train_config(preset, "otca", find_method("otca").settings | settings, 0)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, gpu, iterations, Path(folder))
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", str(part)) for part in (config.policy.path, found["device"]))
    write_atomic(out / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
