"""Runs that may be compared: finished, undamaged, of one task, judged alike, at equal cost; what is not so is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.columns import METRICS
from eval.held_out import held_out_names
from eval.tables import run_items
from otca.config import TrainConfig
from otca.errors import InputError, nearest
from otca.rewards.measured import measured
from otca.runs import config_of, differing, integrity_errors, is_finished, read_manifest

TOLERANCE = 0.01 + 1e-9
"""Relative difference up to which two costs count as equal: 1 %, and what rounding makes of it."""

COSTS = ("network_evaluations", "reward_calls")


@dataclass(frozen=True)
class Runs:
    """Finished, undamaged runs of one method, by seed: folders, manifests, configs."""

    name: str
    folders: Mapping[int, Path]
    manifests: Mapping[int, dict]
    settings: Mapping[int, TrainConfig]

    @property
    def place(self) -> tuple[str, str]:
        """Medium and tier."""
        first = next(iter(self.manifests.values()))
        return first["modality"], first["tier"]

    def trained_on(self, seed: int) -> set[str]:
        """What the training rewards measure, by the config and by what they call themselves; nothing for an untrained model.

        Classes that the config names are not imported: a run may be another's.
        """
        if not any(self.manifests[seed]["budget"].values()):
            return set()
        named = {name.partition("?")[0].rpartition("/")[2] for name in self.settings[seed].rewards}
        path = self.folders[seed] / "train.csv"
        columns = pd.read_csv(path, nrows=0).columns if path.is_file() else []
        named |= {c.removeprefix("reward_") for c in columns if c.startswith("reward_") and c != "reward_calls"}
        return set().union(*({name} if ":" in name else measured(name) for name in named))


# ------------------------------------------------------------------------------------------------------------ which runs
def find_runs(paths: Sequence[Path]) -> list[Runs]:
    """The runs in folders of seeds or of methods (whose ``seed*`` are meant), by method in the order given.

    Raises InputError where there is none, on one that is unfinished or damaged, and where a method has a seed twice.
    """
    found: dict[tuple[str, ...], dict[int, Path]] = {}
    for path in paths:
        folders = _run_folders(path)
        if not folders:
            raise InputError(f"{path} holds no finished run; give a run's folder (…/seed0), or a method's with its seed* inside")
        for folder in folders:
            if not is_finished(folder):
                raise InputError(f"run {folder} is not finished (no manifest.json): wait for its command, or start that again")
            broken = integrity_errors(folder)
            if broken:
                raise InputError(f"run {folder} cannot be compared: {broken[0]}")
            manifest = read_manifest(folder)
            seeds = found.setdefault(tuple(str(manifest[key]) for key in ("modality", "tier", "method")), {})
            if manifest["seed"] in seeds and seeds[manifest["seed"]].resolve() != folder.resolve():
                raise InputError(f"{seeds[manifest['seed']]} and {folder} are the same method and seed; give one of them")
            seeds[manifest["seed"]] = folder
    return [_read(name, dict(sorted(folders.items()))) for (_, _, name), folders in found.items()]


def _run_folders(path: Path) -> list[Path]:
    """The folder itself, where a run was begun in it; otherwise what it has as ``seed*``."""
    begun = is_finished(path) or (path / "config.yaml").is_file()
    return [path] if begun else sorted(path.glob("seed*"))


def _read(name: str, folders: dict[int, Path]) -> Runs:
    manifests = {seed: read_manifest(folder) for seed, folder in folders.items()}
    return Runs(name, folders, manifests, {seed: config_of(folder) for seed, folder in folders.items()})


def find_baseline(against: str, published: Path, place: tuple[str, str]) -> Runs:
    """The published method of that name at a modality and tier, or the runs in a folder."""
    of_place = published / place[0] / place[1]
    if (of_place / against).is_dir() and len(Path(against).parts) == 1:
        return find_runs([of_place / against])[0]
    if not _run_folders(Path(against)):
        known = sorted(path.name for path in of_place.glob("*") if path.is_dir())
        if not known:
            said = f"--rows {published} holds no published runs of {'/'.join(place)}, such as {against}"
            raise InputError(f"{said}; give a folder like results/, or --against a folder of runs")
        raise InputError(
            f"--against {against}: no folder of runs, and not published at {'/'.join(place)}{nearest(against, known)} "
            f"(there: {', '.join(known)})"
        )
    first, *others = find_runs([Path(against)])
    if others:
        raise InputError(f"--against {against} holds several methods ({first.name}, {others[0].name}, …); give one")
    return first


# ---------------------------------------------------------------------------------------------------- may it be compared
def check_unlike(runs: Runs, baseline: Runs, unequal_budget: bool) -> list[int]:
    """The seeds that both have. Raises InputError, in one line, for what would make a comparison invalid."""
    if runs.place != baseline.place:
        said = f"{runs.name} ran at {'/'.join(runs.place)}, {baseline.name} at {'/'.join(baseline.place)}"
        raise InputError(f"{said}; compare runs of one modality and tier")
    common = sorted(runs.folders.keys() & baseline.folders.keys())
    if not common:
        have = f"{runs.name} has {list(runs.folders)}, {baseline.name} {list(baseline.folders)}"
        raise InputError(f"no common seeds: {have}; run the baseline's seeds, which share its prompts and noise")
    for seed in common:
        if runs.manifests[seed]["hash"] == baseline.manifests[seed]["hash"]:
            raise InputError(f"{runs.folders[seed]} and {baseline.folders[seed]} are one and the same run")
        _refuse_other_judging(runs, baseline, seed)
        for side in (runs, baseline):
            both = sorted(side.trained_on(seed) & _held_out(side, seed))
            if both:
                said = f"{side.folders[seed]} was trained on {', '.join(both)}, which the evaluation holds out"
                raise InputError(f"{said}; what is gained there proves nothing")
    ratios = cost_ratios(runs, baseline, common)
    unequal = [name for name, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE]
    if unequal and not unequal_budget:
        said = " and ".join(f"{ratios[name]:.2f} times the {name.replace('_', ' ')}" for name in unequal)
        raise InputError(
            f"unequal budget: {runs.name} had {said} of {baseline.name}; compare at equal budget, or say --unequal-budget"
        )
    return common


def cost_ratios(runs: Runs, baseline: Runs, seeds: Sequence[int]) -> dict[str, float]:
    """What a method spent for each 1 of the baseline, over these seeds: network evaluations and reward calls."""
    spent = [[sum(side.manifests[s]["budget"][name] for s in seeds) for side in (runs, baseline)] for name in COSTS]
    return {name: 1.0 if own == other else own / other if other else float("inf") for name, (own, other) in zip(COSTS, spent)}


def _refuse_other_judging(runs: Runs, baseline: Runs, seed: int) -> None:
    """Raise InputError unless both runs of a seed were trained on the same list of prompts and judged alike on the same."""
    pair = f"{runs.folders[seed]} and {baseline.folders[seed]}"
    changed = differing(baseline.manifests[seed]["protocol"], runs.manifests[seed]["protocol"])
    if changed:
        raise InputError(f"{pair} were evaluated by different protocols ({'; '.join(changed)}); evaluate both alike")
    lists = [side.settings[seed].prompts for side in (baseline, runs)]
    if lists[0] != lists[1]:
        raise InputError(f"{pair} were trained on different prompts ({lists[0]} → {lists[1]}); train on the same list")
    items = [run_items(side.folders[seed])[0] for side in (baseline, runs)]
    if not items[0].equals(items[1]):
        raise InputError(f"{pair} were judged on different prompts (scores.csv.gz); evaluate both on the same list")


def _held_out(runs: Runs, seed: int) -> set[str]:
    """Names of the held-out metrics of a run: of those in its files, and of what its tier holds out."""
    _, items = run_items(runs.folders[seed])
    sets = pd.read_csv(runs.folders[seed] / "sets.csv")["metric"]
    names = {name for name in (*items, *sets) if name in METRICS and METRICS[name].held_out}
    names |= {"judge_correct"} if "accuracy" in names else set()
    return names.union(*map(measured, held_out_names("/".join(runs.place))))
