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
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from baselines import find_method
from eval.markup import number, show
from eval.tables import BASELINE
from otca import presets
from otca.config import PolicyConfig
from otca.files import resolve_model
from otca.models.base import Policy, build_policy
from otca.models.loading import TEXT_ENCODERS, component_dtypes
from otca.plan import GPUS, plan
from otca.prompts import load_prompts
from otca.rewards.base import build_reward
from otca.sampling import plan_of, velocity_at
from otca.shapes import empty_pipeline
from otca.trainer import Trainer
from otca.types import Prompt
from reproduce.gate import Entry, record
from reproduce.run import positive, run_script, script

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
EMBEDDED = ("alignment", "quality", "aesthetic")
"""Scorers of the embedded task, whose pictures have 64 pixels a side."""


def now() -> float:
    """The clock, once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], object]) -> float:
    started = now()
    call()
    return now() - started


# ---------------------------------------------------------------------------------------------------------------- engine
def timed_step(trainer: Trainer) -> dict[str, float]:
    """Seconds of an iteration, "total", and of each of its phases."""
    return {"total": seconds_of(trainer.step)} | trainer.seconds


def bare_network_passes(trainer: Trainer) -> None:
    """An iteration's network passes and nothing else: T forward ones a chunk, then one with backward a trained step."""
    policy, rows, config = trainer.policy, trainer.micro_batch, trainer.config
    sigma_S = plan_of(config, policy.shift, rows).sigma_S
    condition = policy.encode([prompt.text for prompt in trainer.prompts[:rows]])
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(rows)])
    for _ in range(config.prompts_per_iteration * config.group_size // rows):
        for t in range(config.sampler.steps):
            with torch.no_grad():
                velocity_at(policy, x, t, sigma_S, condition)
        for t in range(config.sampler.steps - 1):
            velocity_at(policy, x, t, sigma_S, condition).square().mean().backward()
    trainer.optimizer.zero_grad()


def engine(modality: str, folder: Path) -> dict[str, Entry]:
    """Efficiency, seconds and phases of an OTCA iteration; process credit's seconds over static weighting's, cpu tier."""
    torch.set_num_threads(1)

    def warm(name: str, settings: dict[str, object]) -> Trainer:
        """A trainer after one iteration that does not count."""
        method = find_method(name)
        trainer = Trainer(presets.train_config(f"{modality}/cpu", name, settings | LONG, 0), method, folder / name)
        trainer.step()
        return trainer

    trainer = warm("otca", WORKLOADS[modality])
    rounds = []
    for _ in range(ROUNDS):  # in turn, on one machine
        rounds.append({"bare": seconds_of(lambda: bare_network_passes(trainer))} | timed_step(trainer))
    phases = pd.DataFrame(rounds)
    share = phases.div(phases["total"], axis=0).median().drop(["bare", "total"])
    rivals = {name: warm(name, find_method(name).settings) for name in (BASELINE, "process_credit")}
    seconds = {name: np.median([timed_step(rival)["total"] for _ in range(3)]) for name, rival in rivals.items()}
    efficiency = (phases["bare"] / (phases["sampling"] + phases["update"])).median()
    config = trainer.config
    said = f"s for {config.prompts_per_iteration * config.group_size} {modality}s x {config.sampler.steps} steps"
    out = {
        "engine_efficiency": Entry(efficiency, "bare network seconds / engine seconds", 0.90),
        "iteration_seconds": Entry(phases["total"].median(), said, SECONDS[modality], below=True),
        "process_credit": Entry(seconds["process_credit"] / seconds[BASELINE], f"x the seconds of {BASELINE}"),
        **{f"share_{name}": Entry(value, "share of an iteration") for name, value in share.items()},
        "share_credit": Entry(share["credit"], "share of an iteration", 0.01, below=True),
    }
    return {f"{modality}_{name}": entry for name, entry in out.items()}


# --------------------------------------------------------------------------------------------------------------- scorers
def share_inside_networks(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and the share of them inside the outermost torch modules that it calls; 0 where it calls none."""
    entered, inside = [], []

    def leave(*_) -> None:
        since = entered.pop()
        if not entered:
            inside.append(now() - since)

    hooks = nn.modules.module
    with (
        hooks.register_module_forward_pre_hook(lambda *_: entered.append(now())),
        hooks.register_module_forward_hook(leave, always_call=True),
    ):
        total = seconds_of(call)
    return total, sum(inside) / total


@torch.inference_mode()
def scorer(name: str, files: str) -> dict[str, Entry]:
    """Pictures a second of a scorer, and the share of its time inside its networks, at each of `SIDES` that it takes."""
    reward, out = build_reward(name, "cuda" if torch.cuda.is_available() else "cpu", files, timeout=0), {}
    drawn = load_prompts("embedded:image/validation", PICTURES)  # their specs, which rewards of the embedded task read
    prompts = [Prompt(prompt.id, 'a sign that says "STOP"', prompt.spec) for prompt in drawn]
    for side in (64,) if name in EMBEDDED else SIDES:
        media_BFCHW = torch.rand(PICTURES, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
        rounds = [share_inside_networks(lambda media=media_BFCHW: reward.score(media, prompts)) for _ in range(4)]
        seconds, share = np.median(rounds[1:], axis=0)
        out[f"scorer_{name}_{side}px"] = Entry(PICTURES / seconds, "pictures a second")
        if share:
            out[f"scorer_{name}_{side}px_efficiency"] = Entry(share, "share of its time inside its networks", 0.9)
    return out


# -------------------------------------------------------------------------------------------------------- published sizes
class Brightness:
    """A reward that costs nothing: the mean of the pixels."""

    name, range, source, licence, revision = "brightness", (0.0, 1.0), "this repository", "Apache-2.0", "1"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        return media_BFCHW.flatten(1).mean(1)


def random_policy(config: PolicyConfig, device: torch.device, networks_on: torch.device | None = None) -> Policy:
    """The policy of a config with random weights and one random encoding for all texts (``networks_on`` is for shards)."""
    pipeline = empty_pipeline(resolve_model(config.path), component_dtypes(config), without=TEXT_ENCODERS)
    torch.manual_seed(0)
    for part in (part for part in pipeline.components.values() if isinstance(part, nn.Module)):
        part.to_empty(device=device)
        with torch.no_grad():
            for name, weight in [*part.named_parameters(), *part.named_buffers()]:
                if weight.is_floating_point() and weight.dim() > 1:
                    weight.normal_(std=0.02)
                else:
                    weight.fill_("norm" in name and name.endswith("weight"))
    policy = build_policy(config, device, pipeline)
    encoding = tuple(torch.randn(shape).to(policy.device, policy.dtype) for shape in policy.text_shapes())
    policy.texts = SimpleNamespace(get=lambda texts: [encoding] * len(texts), write=lambda texts: None)
    return policy


def published_size(preset: str, iterations: int, folder: Path) -> dict[str, Entry]:
    """Seconds by phase, peak memory beside the planned one, and share of the GPU's bf16 TFLOP/s, at a preset's size."""
    settings = {"rewards": ["reproduce.benchmark:Brightness"], "prompts": "embedded:image/train", "policy.prompt_cache": ""}
    method, cuda = find_method("otca"), torch.cuda.is_available()
    config = presets.train_config(preset, "otca", method.settings | settings | LONG, 0)

    def planned(**changes: object):
        policy = dataclasses.replace(config.policy, prompt_cache="none here", **changes)
        return plan(dataclasses.replace(config, policy=policy), method)

    trainer = Trainer(config, method, folder, make_policy=random_policy)
    trainer.step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    means = pd.DataFrame([timed_step(trainer) for _ in range(iterations)]).mean()
    memory = planned()
    out = {f"{name}_seconds": Entry(value, "s an iteration") for name, value in means.items()}
    out["planned_gib"] = Entry(max(memory.peaks["sampling"], memory.peaks["updating"]) / 2**30, "GiB planned")
    if cuda:
        out["peak_gib"] = Entry(torch.cuda.max_memory_allocated() / 2**30, "GiB allocated at most")
        found = torch.cuda.get_device_name().lower().replace(" ", "")
        for gpu in [name for name in GPUS if name in found][:1]:
            useful = sum(planned(gradient_checkpointing=False).flops.values())  # recomputation is no progress
            share = useful / means["total"] / (GPUS[gpu][1] * 1e12)
            out["utilisation"] = Entry(share, f"share of the bf16 TFLOP/s of {gpu}")
    return {f"{preset}_{name}": entry for name, entry in out.items()}


# --------------------------------------------------------------------------------------------------------------- command
def main(argv: list[str] | None = None) -> int:
    parser = script("benchmark", __doc__)
    parser.add_argument("--modality", choices=tuple(WORKLOADS), help="the engine on one embedded model alone")
    parser.add_argument("--rewards", help="scorers alone, by name, separated by commas")
    parser.add_argument("--reward-files", default="", help="folder of the scorers' files")
    parser.add_argument("--preset", help="a published size alone, with random weights")
    parser.add_argument("--iterations", type=positive, default=3, help="with --preset: iterations that count (default: 3)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"file to write; other rows are kept (default: {OUT})")
    return run_script(parser, _measure, argv)


def _measure(args: argparse.Namespace) -> None:
    found: dict[str, Entry] = {}
    everything = not (args.preset or args.rewards or args.modality)
    modalities = tuple(WORKLOADS) if everything else filter(None, [args.modality])
    rewards = ("ocr", *EMBEDDED) if everything else filter(None, (args.rewards or "").split(","))
    with tempfile.TemporaryDirectory() as folder:
        if args.preset:
            found |= published_size(args.preset, args.iterations, Path(folder))
        for modality in modalities:
            found |= engine(modality, Path(folder) / modality)
    for name in rewards:
        found |= scorer(name, args.reward_files)
    record(args.out, found)
    columns = {
        "What": list(found),
        "Value": [number(float(e.value), 3) for e in found.values()],
        "Unit": [e.unit for e in found.values()],
        "Goal": ["" if e.goal is None else f"{'≤' if e.below else '≥'} {e.goal:g}" for e in found.values()],
    }
    missed = ", ".join(name for name, entry in found.items() if not entry.holds)
    show("Speed", columns, f"Goals missed: {missed or 'none'}. Written: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
