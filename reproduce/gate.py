"""The gates of an embedded task, fixed before any table: it learns, the quick tier shows it, credit is there, knowing it helps.

    python -m reproduce.gate --modality image                  every gate → results/gates/image.json
    python -m reproduce.gate --modality image --gate credit    one gate; the other entries stay

Entries are ``{name: {value, unit, goal, holds, hardware}}``, named after their gate; a goal of null is a number that is reported.
Runs and truths lie in runs/gates/<modality>-<state>/ and are not repeated; ``state`` hashes what decides them (checkpoint, tasks,
preset), so a change of the task starts anew. Tuning seeds alone: no table has them. The same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eval.fidelity import true_covariance_TKK
from eval.generate import generate
from eval.held_out import MEDIA
from eval.store import COST
from eval.tables import BASELINE, UNTRAINED
from otca import checkpoint, presets, tasks
from otca.config import PolicyConfig
from otca.files import EMBEDDED, write_atomic
from otca.models.base import build_policy
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce.judged import TASKS, drawings
from reproduce.one_run import hardware
from reproduce.run import script
from reproduce.truth import Study, continuations, load_draws, load_trajectories, sample
from reproduce.variants import variant_settings
from reproduce.workers import run_arms, run_tasks

FOLDER = Path("results/gates")
SEEDS = (100, 101, 102)
"""Tuning seeds, disjoint from those of tables."""
ORACLE = "process_credit@truth4"
LEARNS_ITERATIONS = 160
"""Iterations within which everything must have risen, at the tier's settings but for their number."""
ORACLE_ITERATIONS = {"image": 24, "video": 16}
"""Iterations at which the oracle is compared: each costs many of static weighting's."""
QUICK = ("uniform_grpo", BASELINE, "otca")
VALIDATIONS = 10
"""How often a run's rewards are compared with the base's, on fixed prompts and noise."""
TOLERANCE = 0.05
"""Standard deviations below the base that are the noise of a validation."""
SAMPLES = 480
"""Drawings, and samples of a model, that the two judges are compared on."""


@dataclass(frozen=True)
class Entry:
    """One number of a gate: it holds where it is at least (at most, if ``below``) its goal."""

    value: float
    unit: str
    goal: float | None = None
    below: bool = False

    @property
    def holds(self) -> bool:
        """Whether the goal is met; always, where there is none."""
        return self.goal is None or (self.value <= self.goal if self.below else self.value >= self.goal)


@dataclass(frozen=True)
class Gate:
    """What a gate is measured on."""

    modality: str
    jobs: int
    prompts: int
    draws: int

    def root(self, tier: str = "cpu") -> Path:
        """Folder of a tier's runs and truths of the task as it is."""
        preset = f"{self.modality}/{tier}"
        settings = presets.train_config(preset, BASELINE, {}, 0), presets.eval_config(preset)
        files = [*sorted(Path(tasks.__file__).parent.rglob("*.py")), EMBEDDED / self.modality / "sha256.json"]
        digest = hashlib.sha256(repr(settings).encode() + b"".join(file.read_bytes() for file in files))
        return Path("runs/gates") / f"{self.modality}-{digest.hexdigest()[:8]}"

    def runs(self, tier: str, names: tuple[str, ...], seeds: tuple[int, ...] = SEEDS, iterations=0) -> dict[str, list[Path]]:
        """Folders of the finished runs of each method or variant, made where they are missing; 0 iterations are the tier's."""
        arms = {name: [self.arm(tier, name, seed, iterations) for seed in seeds] for name in names}
        root = self.root(tier)
        run_arms([arm for of in arms.values() for arm in of], root, self.jobs)
        return {name: [root / arm.path for arm in of] for name, of in arms.items()}

    def arm(self, tier: str, name: str, seed: int, iterations: int) -> RunSpec:
        """A run of that many iterations, validated on the way; 0 are the tier's."""
        config, settings = presets.train_config(f"{self.modality}/{tier}", BASELINE, {}, seed), variant_settings(name)
        if name != UNTRAINED and tier != "quick":
            every = -(-(iterations or config.iterations) // VALIDATIONS)
            watched = {"every": every, "steps": config.sampler.steps, "samples_per_prompt": 2}
            watched["source"] = f"embedded:{self.modality}/validation"
            settings = settings | {f"validation.{key}": value for key, value in watched.items()}
        method, _, variant = name.partition("@")
        if iterations:
            settings, variant = settings | {"iterations": iterations}, f"{variant}-{iterations}iterations".strip("-")
        return RunSpec(self.modality, tier, method, seed, variant, tuple(settings.items()))


def items(run: Path) -> pd.DataFrame:
    """Rows of a run's held-out samples."""
    return pd.read_csv(run / "scores.csv.gz")


def gains(trained: list[Path], base: list[Path], column: str = "judge_correct") -> np.ndarray:
    """Rise of a column's mean over the base, one value a seed: prompts and noise are the same."""
    return np.array([items(run)[column].mean() - items(start)[column].mean() for run, start in zip(trained, base)])


def learns(gate: Gate) -> dict[str, Entry]:
    """Static multi-reward GRPO at the tier's rate raises accuracy and every trained reward, and lets none fall."""
    runs = gate.runs("cpu", (UNTRAINED,)) | gate.runs("cpu", (BASELINE,), iterations=LEARNS_ITERATIONS)
    config = presets.train_config(f"{gate.modality}/cpu", BASELINE, {}, 0)
    validations = [pd.read_csv(run / "validation.csv") for run in runs[BASELINE]]
    names = config.rewards
    deviation = {n: np.mean([items(run)[n].std() for run in runs[UNTRAINED]]) for n in names}
    paths = {n: np.mean([v[f"mean_{n}"] - v[f"mean_{n}"][0] for v in validations], axis=0)[1:] for n in names}
    iteration = [pd.read_csv(run / "timing.csv")["total"].quantile(0.1) for run in runs[BASELINE]]  # undisturbed by other work
    rises = {n: gains(runs[BASELINE], runs[UNTRAINED], n).mean() / deviation[n] for n in names}
    lowest = min(float((path / deviation[n]).min()) for n, path in paths.items())
    samples = LEARNS_ITERATIONS * config.prompts_per_iteration * config.group_size
    return {
        "accuracy_gain": Entry(gains(runs[BASELINE], runs[UNTRAINED]).mean(), "held-out accuracy over the base", 0.25),
        **{f"rise_{n}": Entry(rise, "standard deviations of the base", 1.0) for n, rise in rises.items()},
        "lowest_reward": Entry(lowest, "standard deviations from the base, lowest validation of any reward", -TOLERANCE),
        "minutes": Entry(max(iteration) * LEARNS_ITERATIONS / 60, "minutes of one core, slowest seed", 20.0, below=True),
        "samples": Entry(samples, "samples a run"),
    }


def quick(gate: Gate) -> dict[str, Entry]:
    """The quick tier's arms rise, and all of them take a few minutes."""
    seeds = SEEDS[: presets.SEEDS["quick"]]
    runs = gate.runs("quick", (UNTRAINED, *QUICK), seeds)
    costs = [json.loads((run / COST).read_text()) for of in runs.values() for run in of]
    seconds = sum(cost["train_seconds"] + cost["evaluate_seconds"] for cost in costs)
    out = {f"gain_{name}": Entry(gains(runs[name], runs[UNTRAINED]).mean(), "held-out accuracy", 0.1) for name in QUICK}
    return out | {"minutes": Entry(seconds / 2 / 60, "minutes on two cores, evaluation included", 8.0, below=True)}


def credit(gate: Gate) -> dict[str, Entry]:
    """True credit of the base's steps: each objective's in a third of its own, and objectives apart (`true_covariance_TKK`).

    Share: of the variance of the true increments, summed over steps; what the initial noise decides belongs to no step.
    """
    study = Study(gate.modality, gate.prompts, gate.draws, root=gate.root() / "truth")
    sample(study, "base")
    run_tasks(continuations(study, "base"), gate.jobs)
    sampled, final = load_trajectories(study, "base")
    draws_SNBK, final_BK = load_draws(study, "base").numpy(), final.reward_BK.numpy()
    signal_TKK, total_TKK = true_covariance_TKK(draws_SNBK, final_BK, sampled.group_B.numpy())
    signal_KK, total_KK = signal_TKK.sum(0), total_TKK.sum(0)
    signal_TK = np.einsum("tkk->tk", signal_TKK)
    third_T = 3 * np.arange(len(signal_TK)) // len(signal_TK)
    share_3K = np.stack([signal_TK[third_T == third].sum(0) for third in range(3)]) / np.diag(signal_KK)
    scale_K = np.sqrt(np.diag(signal_KK))
    correlation_KK = signal_KK / scale_K / scale_K[:, None]
    out = {}
    for k, name in enumerate(study.objectives):
        third = ("early", "middle", "late")[share_3K[:, k].argmax()]
        out[f"share_{name}"] = Entry(share_3K[:, k].max(), f"share of its true credit in the {third} third of the steps", 0.6)
        out[f"reliability_{name}"] = Entry(signal_KK[k, k] / total_KK[k, k], "share of its variance that is no error", 0.8)
        for other in range(k):
            pair = f"correlation_{study.objectives[other]}_{name}"
            out[pair] = Entry(abs(correlation_KK[k, other]), "|correlation| of true credit", 0.4, below=True)
    return out


def oracle(gate: Gate) -> dict[str, Entry]:
    """Training on the Monte-Carlo truth beats static weighting at equal iterations."""
    iterations = ORACLE_ITERATIONS[gate.modality]
    runs = gate.runs("cpu", (BASELINE, ORACLE), iterations=iterations)
    difference = gains(runs[ORACLE], runs[BASELINE])
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "difference": Entry(difference.mean(), f"held-out accuracy over static weighting, both {iterations} iterations"),
        "standard_errors": Entry(difference.mean() / error, "difference in standard errors, paired seeds", 2.0),
    }


def judges(gate: Gate) -> dict[str, Entry]:
    """The training verifier and the held-out judge are right on drawings, and agree on samples of the base.

    ``gap`` is what the verifier likes and the judge does not in a trained model, where `learns` has made one: hacking.
    """
    task, judge = TASKS[gate.modality], MEDIA[gate.modality]().judge
    policy = build_policy(PolicyConfig(path=f"embedded:{gate.modality}"))
    out = {}
    for what, media, prompts, right in drawings(task, SAMPLES, policy.pipeline.vae):
        goal = 0.99 if what.startswith("renders") else 0.97
        for name, verdict in (("verifier", task.verdicts(media, prompts)), ("judge", judge.score(media, prompts).numpy() == 1)):
            out[f"{name}_{what}"] = Entry((verdict == right).mean(), "share of right verdicts", goal)
    trained = gate.root() / gate.arm("cpu", BASELINE, SEEDS[0], LEARNS_ITERATIONS).path
    found = checkpoint.checkpoints(trained)
    for model in ("base", *(["trained"] if found else [])):
        if model == "trained":
            policy.load(found[-1])
        config = dataclasses.replace(presets.eval_config(f"{gate.modality}/cpu"), prompts=SAMPLES, samples_per_prompt=1)
        media, prompts = generate(policy, config, seed=SEEDS[0])
        verified, correct = task.verdicts(media, prompts), judge.score(media, prompts).numpy() == 1
        goal = 0.9 if model == "base" else None
        out[f"agreement_{model}"] = Entry((verified == correct).mean(), "share of samples that both judge alike", goal)
        out[f"gap_{model}"] = Entry(verified.mean() - correct.mean(), "accuracy by the verifier less that by the judge")
    return out


GATES = {gate.__name__: gate for gate in (judges, credit, quick, learns, oracle)}
"""In the order of their cost."""


def record(path: Path, entries: dict[str, Entry], replaced: str | None = None) -> None:
    """Add entries to a JSON file, in place of those of the same names and of all whose names start with ``replaced``."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: row for key, row in kept.items() if replaced is None or not key.startswith(replaced)}
    for key, entry in entries.items():
        row = {"value": round(float(entry.value), 4), "unit": entry.unit, "goal": entry.goal, "holds": bool(entry.holds)}
        kept[key] = row | {"hardware": hardware()}
    write_atomic(path, json.dumps(kept, indent=1) + "\n")


def write(modality: str, name: str, entries: dict[str, Entry]) -> None:
    """Replace a gate's entries in results/gates/<modality>.json."""
    record(FOLDER / f"{modality}.json", {f"{name}/{key}": entry for key, entry in entries.items()}, f"{name}/")


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write, print; exit code 1 where a gate does not hold, 2 with one line where it cannot be measured."""
    parser = script("gate", __doc__, "--modality", "--jobs")
    parser.add_argument("--gate", choices=tuple(GATES), help="which gate (default: all)")
    parser.add_argument("--prompts", type=int, default=16, help="credit: groups of trajectories (default: 16)")
    parser.add_argument("--draws", type=int, default=32, help="credit: continuations of a state (default: 32)")
    args = parser.parse_args(argv)
    return run_command("gate", lambda: _make(args))


def _make(args: argparse.Namespace) -> int:
    gate, held = Gate(args.modality, args.jobs, args.prompts, args.draws), True
    for name in (args.gate,) if args.gate else GATES:
        entries = GATES[name](gate)
        write(args.modality, name, entries)
        for key, entry in entries.items():
            said = "" if entry.goal is None else f" (goal {entry.goal:g}: {'holds' if entry.holds else 'fails'})"
            print(f"{name}/{key:28} {entry.value:8.3f} {entry.unit}{said}", flush=True)
        held &= all(entry.holds for entry in entries.values())
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
