"""Speed of the engine: `python -m reproduce.speed` → results/speed/speed.json. A benchmark, not a test; ratios within one run.

Engine efficiency = time of the bare network calls of an iteration (same shapes, same numbers of forward and backward
passes) ÷ wall time of its sampling loop and update; decoding and rewards are apart. Everything runs on one thread, except
the comparison of two runs side by side with one after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch

from baselines import find_method
from eval.tables import BASELINE
from otca import presets
from otca.config import TrainConfig
from otca.files import write_atomic
from otca.methods import METHODS
from otca.rollout import velocity_at
from otca.trainer import Trainer
from reproduce.costs import hardware
from reproduce.runner import arm_config
from reproduce.table import BEYOND
from reproduce.variants import named_arm

COMMON = {"sampler.shift": 3.0, "iterations": 10**6, "save_every": 10**6}
WORKLOADS: dict[str, dict[str, object]] = {
    "image": COMMON | {"prompts_per_iteration": 8, "group_size": 8, "micro_batch": 32, "sampler.steps": 10},
    "video": COMMON | presets.VIDEO | {"prompts_per_iteration": 4, "group_size": 8, "micro_batch": 16, "sampler.steps": 8},
}
"""The full OTCA method on 64 images × 10 steps and on 32 videos × 8 steps."""

GOAL_SECONDS = {"image": 5.0, "video": 7.0}
"""Of an iteration, decode and rewards included, on one free core."""

ROUNDS = 5


def make_trainer(modality: str, folder: Path) -> Trainer:
    """A trainer of the modality's workload on its embedded checkpoint."""
    return Trainer(TrainConfig.from_dotted(WORKLOADS[modality]), METHODS["otca"], folder)


def bare_network_seconds(trainer: Trainer) -> float:
    """The iteration's network calls and nothing else: T forward passes a chunk, then one with backward a trained step."""
    policy, rows = trainer.policy, trainer.micro_batch
    batch = trainer._batch()
    condition = policy.encode([p.text for p in batch.prompts[:rows]])
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(rows)])
    chunks, steps = len(batch.prompts) // rows, len(trainer.sigma_S) - 1
    started = time.perf_counter()
    with torch.no_grad():
        for _ in range(chunks):
            for t in range(steps):
                velocity_at(policy, x, t, trainer.sigma_S, condition)
    for _ in range(chunks):
        for t in range(steps - 1):
            velocity_at(policy, x, t, trainer.sigma_S, condition).square().mean().backward()
    elapsed = time.perf_counter() - started
    for p in trainer.parameters:
        p.grad = None
    return elapsed


def engine(modality: str, folder: Path) -> dict[str, tuple[float, str, float | None, bool]]:
    """Efficiency, credit share, seconds and phase shares of an iteration, bare and full rounds in turn."""
    torch.set_num_threads(1)
    trainer = make_trainer(modality, folder)
    trainer.step()
    bare_network_seconds(trainer)
    bare, phases = [], []
    for _ in range(ROUNDS):
        bare.append(bare_network_seconds(trainer))
        started = time.perf_counter()
        trainer.step()
        phases.append(trainer.seconds | {"total": time.perf_counter() - started})
    efficiency = statistics.median(b / (p["sampling"] + p["update"]) for b, p in zip(bare, phases))
    share = {name: statistics.median(p[name] / p["total"] for p in phases) for name in phases[0] if name != "total"}
    total = statistics.median(p["total"] for p in phases)
    goal, samples = GOAL_SECONDS[modality], len(trainer._batch().prompts)
    unit = f"s for {samples} {modality}s x {len(trainer.sigma_S) - 1} steps, decode and rewards included"
    out = {
        "engine_efficiency": (efficiency, "bare network seconds / engine seconds", 0.90, efficiency >= 0.90),
        "credit_share": (share["credit"], "share of an iteration", 0.01, share["credit"] <= 0.01),
        "iteration_seconds": (total, unit, goal, total <= goal),
    }
    out |= {f"share_{name}": (value, "share of an iteration", None, True) for name, value in share.items()}
    return {f"{modality}_{name}": value for name, value in out.items()}


def process_credit_seconds(modality: str, folder: Path) -> dict[str, tuple[float, str, float | None, bool]]:
    """Seconds of process credit's iterations, and of its whole trainings, for each one of static weighting's.

    The cpu tier's arms, an iteration of each in turn.
    """
    torch.set_num_threads(1)
    arms = {name: named_arm(modality, "cpu", name, 0) for name in (BASELINE, *BEYOND)}
    configs = {name: arm_config(arm) for name, arm in arms.items()}
    trainers = {n: Trainer(configs[n], find_method(arm.method), folder / n) for n, arm in arms.items()}
    for trainer in trainers.values():
        trainer.step()
    rounds = []
    for _ in range(ROUNDS):
        row = {}
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step()
            row[name] = time.perf_counter() - started
        rounds.append(row)
    out = {}
    for name in BEYOND:
        ratio = statistics.median(row[name] / row[BASELINE] for row in rounds)
        whole = ratio * configs[name].iterations / configs[BASELINE].iterations
        out[f"{modality}_{name}_iteration"] = (ratio, f"x the seconds of an iteration of {BASELINE}", None, True)
        out[f"{modality}_{name}_training"] = (whole, f"x the seconds of a training of {BASELINE}, cpu tier", None, True)
    return out


def side_by_side(folder: Path, iterations: int = 4) -> dict[str, tuple[float, str, float | None, bool]]:
    """Throughput of two runs at once over that of one after the other (one thread each)."""
    alone = [max(_timed_runs(folder, 1, iterations)) for _ in range(2)]
    together = max(_timed_runs(folder, 2, iterations))
    ratio = sum(alone) / together
    return {"image_side_by_side_throughput": (ratio, "x the throughput of one after the other, on two cores", 1.8, ratio >= 1.8)}


def _timed_runs(folder: Path, count: int, iterations: int) -> list[float]:
    """Wall seconds of ``iterations`` iterations in each of ``count`` processes that start together."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_work, args=(folder / f"w{i}", barrier, results, iterations)) for i in range(count)]
    for worker in workers:
        worker.start()
    seconds = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    return seconds


def _work(folder: Path, barrier, results, iterations: int) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer("image", folder)
    trainer.step()
    barrier.wait()
    started = time.perf_counter()
    for _ in range(iterations):
        trainer.step()
    results.put(time.perf_counter() - started)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.speed", description=__doc__)
    parser.add_argument("--modality", choices=(*WORKLOADS, "all"), default="all", help="which workload (default: all)")
    parser.add_argument("--out", type=Path, default=Path("results/speed/speed.json"), help="file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {} if args.modality == "video" else side_by_side(Path(folder))
        for modality in WORKLOADS if args.modality == "all" else (args.modality,):
            measured |= engine(modality, Path(folder) / modality)
            measured |= process_credit_seconds(modality, Path(folder) / "credit" / modality)
    machine = hardware()
    table = {
        name: {"value": round(value, 4), "unit": unit, "goal": goal, "holds": holds, "hardware": machine}
        for name, (value, unit, goal, holds) in measured.items()
    }
    kept = json.loads(args.out.read_text()) if args.out.exists() and args.modality != "all" else {}
    kept = {name: row for name, row in kept.items() if not name.startswith(f"{args.modality}_")}
    write_atomic(args.out, json.dumps(kept | table, indent=1) + "\n")
    for name, row in table.items():
        goal = "" if row["goal"] is None else f" (goal {row['goal']}: {'holds' if row['holds'] else 'falls short'})"
        print(f"{name:30} {row['value']:8.4f} {row['unit']}{goal}")
    print(f"{machine}\nwritten: {args.out}")


if __name__ == "__main__":
    main()
