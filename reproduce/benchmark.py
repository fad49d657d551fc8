"""Speed of the engine and of scorers → results/speed/speed.json. A benchmark, not a test; ratios are taken within one run.

    python -m reproduce.benchmark                           both embedded models, and the scorers that need no download
    python -m reproduce.benchmark --rewards hpsv2,clip --reward-files rewards     these scorers, where their files are
    python -m reproduce.benchmark --preset image/flux-lora  a published size, random weights, on a GPU: time, memory, utilisation

Engine efficiency is the time of an iteration's bare network passes over that of its sampling and update; a scorer's is the share
of its time inside its networks. On a CPU everything runs on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from baselines import find_method
from eval.tables import BASELINE
from otca import presets
from otca.architectures import empty_pipeline
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.files import resolve_model, write_atomic
from otca.models.base import Policy, build_policy
from otca.models.loading import TEXT_ENCODERS, component_dtypes
from otca.plan import GPUS, plan
from otca.rewards.base import build_reward
from otca.sampling import plan_of, velocity_at
from otca.signals import run_command
from otca.trainer import Trainer
from otca.types import Prompt
from reproduce.one_run import hardware

OUT = Path("results/speed/speed.json")
ROUNDS = 5
LONG = {"iterations": 10**6, "save_every": 10**6}
WORKLOADS: dict[str, dict[str, object]] = {
    "image": {"prompts_per_iteration": 8, "group_size": 8, "micro_batch": 32, "sampler.steps": 10},
    "video": {"prompts_per_iteration": 4, "group_size": 8, "micro_batch": 16, "sampler.steps": 8},
}
"""OTCA on 64 images × 10 steps and on 32 videos × 8 steps."""
SECONDS = {"image": 5.0, "video": 7.0}
"""Goal of an iteration, decoding and rewards included, on one free core."""
SIDES, PICTURES = (256, 512), 16
"""Pixels a side, and number, of the pictures that are scored."""
FREE = ("ocr", "alignment", "quality", "aesthetic")
"""Scorers that come with the package or with its requirements."""

Rows = dict[str, tuple[float, str, float | None, bool]]
"""Name → value, unit, goal, whether it holds."""


class Brightness:
    """A reward that costs nothing: the mean of the pixels."""

    name, range, source, licence, revision = "brightness", (0.0, 1.0), "this repository", "Apache-2.0", "1"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Mean of each sample's pixels, float32 (B,)."""
        return media_BFCHW.flatten(1).mean(1)


def now() -> float:
    """The clock, once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed_steps(trainer: Trainer, rounds: int) -> list[dict[str, float]]:
    """Seconds of each phase, and "total", of so many iterations after one that does not count."""
    trainer.step()
    out = []
    for _ in range(rounds):
        started = now()
        trainer.step()
        out.append(trainer.seconds | {"total": now() - started})
    return out


def bare_network_seconds(trainer: Trainer) -> float:
    """An iteration's network passes and nothing else: T forward ones a chunk, then one with backward a trained step."""
    policy, rows, config = trainer.policy, trainer.micro_batch, trainer.config
    sigma_S = plan_of(config, policy.shift, rows).sigma_S
    condition = policy.encode([prompt.text for prompt in trainer.prompts[:rows]])
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(rows)])
    chunks, steps = config.prompts_per_iteration * config.group_size // rows, config.sampler.steps
    started = now()
    for _ in range(chunks):
        for t in range(steps):
            with torch.no_grad():
                velocity_at(policy, x, t, sigma_S, condition)
        for t in range(steps - 1):
            velocity_at(policy, x, t, sigma_S, condition).square().mean().backward()
    elapsed = now() - started
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    return elapsed


def engine(modality: str, folder: Path) -> Rows:
    """Efficiency, seconds and phases of an OTCA iteration; process credit's seconds over static weighting's, cpu tier."""
    torch.set_num_threads(1)
    config = presets.train_config(f"{modality}/cpu", "otca", WORKLOADS[modality] | LONG, 0)
    trainer = Trainer(config, find_method("otca"), folder / "otca")
    timed_steps(trainer, 0)
    bare, phases = [], []
    for _ in range(ROUNDS):  # in turn, so that both see the same machine
        bare.append(bare_network_seconds(trainer))
        started = now()
        trainer.step()
        phases.append(trainer.seconds | {"total": now() - started})
    efficiency = statistics.median(b / (p["sampling"] + p["update"]) for b, p in zip(bare, phases))
    share = {name: statistics.median(p[name] / p["total"] for p in phases) for name in phases[0] if name != "total"}
    total, goal = statistics.median(p["total"] for p in phases), SECONDS[modality]
    seconds = {}
    for name in (BASELINE, "process_credit"):
        method = find_method(name)
        own = presets.train_config(f"{modality}/cpu", name, method.settings | LONG, 0)
        steps = timed_steps(Trainer(own, method, folder / name), 3)
        seconds[name] = statistics.median(step["total"] for step in steps)
    samples = config.prompts_per_iteration * config.group_size
    rows = {
        "engine_efficiency": (efficiency, "bare network seconds / engine seconds", 0.90, efficiency >= 0.90),
        "iteration_seconds": (total, f"s for {samples} {modality}s x {config.sampler.steps} steps", goal, total <= goal),
        "process_credit": (seconds["process_credit"] / seconds[BASELINE], f"x the seconds of {BASELINE}", None, True),
        **{f"share_{name}": (value, "share of an iteration", None, True) for name, value in share.items()},
    }
    rows["share_credit"] = (share["credit"], "share of an iteration", 0.01, share["credit"] <= 0.01)
    return {f"{modality}_{name}": row for name, row in rows.items()}


def share_inside_networks(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and the share of them inside the outermost torch modules that it calls; 0 where it calls none."""
    depth, entered, inside = 0, 0.0, 0.0

    def enter(*_) -> None:
        nonlocal depth, entered
        entered, depth = (now() if depth == 0 else entered), depth + 1

    def leave(*_) -> None:
        nonlocal depth, inside
        depth -= 1
        inside += now() - entered if depth == 0 else 0.0

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    started = now()
    call()
    total = now() - started
    for hook in hooks:
        hook.remove()
    return total, inside / total


def scorer(name: str, files: str, device: str) -> Rows:
    """Pictures a second of a scorer, and the share of its time inside its networks, at each of `SIDES` that it takes."""
    reward, out = build_reward(name, device, files, timeout=0), {}
    prompts = [Prompt(str(i), 'a sign that says "STOP"', {"skill": "", "objects": []}) for i in range(PICTURES)]
    for side in SIDES if name not in FREE[1:] else (64,):
        media_BFCHW = torch.rand(PICTURES, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            rounds = [share_inside_networks(lambda media=media_BFCHW: reward.score(media, prompts)) for _ in range(4)][1:]
        seconds, share = (statistics.median(column) for column in zip(*rounds))
        out[f"scorer_{name}_{side}px"] = (PICTURES / seconds, "pictures a second", None, True)
        if share:
            out[f"scorer_{name}_{side}px_efficiency"] = (share, "share of its time inside its networks", 0.9, share >= 0.9)
    return out


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
    """The policy of a config with random weights and no text encoders, drawn on the device (``networks_on`` is for shards)."""
    pipeline = empty_pipeline(resolve_model(config.path), component_dtypes(config), without=TEXT_ENCODERS)
    torch.manual_seed(0)
    for part in (part for part in pipeline.components.values() if isinstance(part, nn.Module)):
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


def published_size(preset: str, iterations: int, folder: Path) -> Rows:
    """Seconds by phase, peak memory beside the planned one, and share of the GPU's bf16 TFLOP/s, at a preset's size."""
    settings = {"rewards": ["reproduce.benchmark:Brightness"], "prompts": "embedded:image/train", "policy.prompt_cache": ""}
    method, cuda = find_method("otca"), torch.cuda.is_available()
    config = presets.train_config(preset, "otca", method.settings | settings | LONG, 0)
    planned = plan(_without_texts(config), method)
    useful = plan(_without_texts(config, gradient_checkpointing=False), method)  # recomputation is no progress
    trainer = Trainer(config, method, folder, make_policy=random_policy)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = timed_steps(trainer, iterations)
    means = {name: statistics.mean(step[name] for step in steps) for name in steps[0]}
    found = torch.cuda.get_device_name().lower().replace(" ", "") if cuda else ""
    gpu = next((name for name in GPUS if name in found), None)
    rows: Rows = {f"{name}_seconds": (value, "s an iteration", None, True) for name, value in means.items()}
    rows["planned_gib"] = (max(planned.sampling_peak, planned.update_peak) / 2**30, "GiB planned", None, True)
    if cuda:
        rows["peak_gib"] = (torch.cuda.max_memory_allocated() / 2**30, "GiB allocated at most", None, True)
    if gpu:
        share = sum(useful.flops.values()) / means["total"] / (GPUS[gpu][1] * 1e12)
        rows["utilisation"] = (share, f"share of the bf16 TFLOP/s of {gpu}", None, True)
    return {f"{preset}_{name}": row for name, row in rows.items()}


def _without_texts(config: TrainConfig, **policy: object) -> TrainConfig:
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, prompt_cache="none here", **policy))


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; exit code 2 with one line where something cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", choices=tuple(WORKLOADS), help="the engine on one embedded model alone")
    parser.add_argument("--rewards", help="scorers alone, by name, separated by commas")
    parser.add_argument("--reward-files", default="", help="folder of the scorers' files")
    parser.add_argument("--preset", help="a published size alone, with random weights")
    parser.add_argument("--iterations", type=int, default=3, help="with --preset: iterations that count (default: 3)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"file to write; other rows are kept (default: {OUT})")
    args = parser.parse_args(argv)
    return run_command("benchmark", lambda: _make(args))


def _make(args: argparse.Namespace) -> None:
    if args.iterations < 1:
        raise InputError(f"--iterations is {args.iterations}; give a number above 0")
    device, rows = "cuda" if torch.cuda.is_available() else "cpu", {}
    with tempfile.TemporaryDirectory() as folder:
        if args.preset:
            rows |= published_size(args.preset, args.iterations, Path(folder))
        elif not args.rewards:
            for modality in (args.modality,) if args.modality else WORKLOADS:
                rows |= engine(modality, Path(folder) / modality)
    chosen = args.rewards.split(",") if args.rewards else [] if args.preset or args.modality else FREE
    for name in chosen:
        rows |= scorer(name, args.reward_files, device)
    machine = hardware()
    made = {
        name: {"value": round(value, 4), "unit": unit, "goal": goal, "holds": bool(holds), "hardware": machine}
        for name, (value, unit, goal, holds) in rows.items()
    }
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    write_atomic(args.out, json.dumps(kept | made, indent=1) + "\n")
    for name, row in made.items():
        goal = "" if row["goal"] is None else f" (goal {row['goal']}: {'holds' if row['holds'] else 'falls short'})"
        print(f"{name:36} {row['value']:9.4f} {row['unit']}{goal}")


if __name__ == "__main__":
    sys.exit(main())
