"""A method of one's own against a published one: `python -m reproduce.compare runs/image/cpu/my_method`.

Seeds are paired with those of the baseline, and the statistics are those of the tables. What would make the comparison
invalid is refused: another task, protocol or set of prompts, unequal cost, a held-out metric that was trained on, damaged runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eval.columns import METRICS
from eval.held_out import held_out_names
from eval.markup import Grid, interval, markdown, markdown_table, number
from eval.stats import bootstrap_interval
from eval.tables import BASELINE, ROW_COLUMNS, build_table, differences, heading, run_items, run_rows, verdict
from otca.config import TrainConfig
from otca.ending import run_command
from otca.errors import InputError
from otca.rewards.measured import measured
from otca.runs import Arm, config_of, damages, differing, is_finished

PRIMARY = "accuracy"
"""Metric that decides, fixed before any run; the others describe."""

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
        return first["medium"], first["tier"]

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

    Raises InputError where there is none, on a damaged one, and where a method has a seed twice.
    """
    found: dict[tuple[str, ...], dict[int, Path]] = {}
    for path in paths:
        folders = [path] if is_finished(path) else sorted(path.glob("seed*"))
        if not folders:
            raise InputError(f"{path} holds no finished run; give a run's folder (…/seed0), or a method's with its seed* inside")
        for folder in folders:
            broken = damages(folder)
            if broken:
                raise InputError(f"run {folder} cannot be compared: {broken[0]}")
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            seeds = found.setdefault(tuple(str(manifest[key]) for key in ("medium", "tier", "method")), {})
            if manifest["seed"] in seeds and seeds[manifest["seed"]].resolve() != folder.resolve():
                raise InputError(f"{seeds[manifest['seed']]} and {folder} are the same method and seed; give one of them")
            seeds[manifest["seed"]] = folder
    return [_read(name, dict(sorted(folders.items()))) for (_, _, name), folders in found.items()]


def _read(name: str, folders: dict[int, Path]) -> Runs:
    manifests = {s: json.loads((folder / "manifest.json").read_text(encoding="utf-8")) for s, folder in folders.items()}
    return Runs(name, folders, manifests, {seed: config_of(folder) for seed, folder in folders.items()})


def find_baseline(against: str, published: Path, place: tuple[str, str]) -> Runs:
    """The published method of that name at a medium and tier, or the runs in a folder."""
    of_place = published / place[0] / place[1]
    if (of_place / against).is_dir() and len(Path(against).parts) == 1:
        return find_runs([of_place / against])[0]
    if not is_finished(Path(against)) and not any(Path(against).glob("seed*")):
        known = ", ".join(sorted(path.name for path in of_place.glob("*") if path.is_dir())) or "nothing"
        raise InputError(f"--against {against}: no folder of runs, and not published at {'/'.join(place)} (there: {known})")
    first, *others = find_runs([Path(against)])
    if others:
        raise InputError(f"--against {against} holds several methods ({first.name}, {others[0].name}, …); give one")
    return first


# ---------------------------------------------------------------------------------------------------- may it be compared
def refuse_unlike(runs: Runs, baseline: Runs, unequal_budget: bool) -> list[int]:
    """The seeds that both have. Raises InputError, in one line, for what would make a comparison invalid."""
    if runs.place != baseline.place:
        said = f"{runs.name} ran at {'/'.join(runs.place)}, {baseline.name} at {'/'.join(baseline.place)}"
        raise InputError(f"{said}; compare runs of one medium and tier")
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


# ------------------------------------------------------------------------------------------------------- what it comes to
def compare(rivals: Sequence[Runs], baseline: Runs, metric: str = "", unequal_budget: bool = False) -> str:
    """The comparison as Markdown: costs, seeds, a table of differences, and what the primary metric shows.

    A method with one seed in common has intervals over prompts instead. ``metric`` picks one; none given is all. Raises
    InputError for what cannot be compared.
    """
    seeds = {runs.name: refuse_unlike(runs, baseline, unequal_budget) for runs in rivals}
    medium, tier = baseline.place
    rows = _rows([(r, _label(r, baseline), seeds[r.name]) for r in rivals] + [(baseline, baseline.name, list(baseline.folders))])
    shared = set.intersection(*(set(part["metric"]) for _, part in rows.groupby("method")))
    if metric and metric not in shared:
        raise InputError(
            f"metric {metric!r} is not one that all these runs have ({', '.join(m for m in METRICS if m in shared)})"
        )
    metrics = [metric] if metric else [name for name in METRICS if name in shared]
    primary = PRIMARY if PRIMARY in metrics else next((m for m in metrics if METRICS[m].held_out), metrics[0])
    out = [f"# Against {markdown(baseline.name)}: {markdown(medium)}, {markdown(tier)} tier"]
    out += ["\n".join(_budget_line(runs, _label(runs, baseline), baseline, seeds[runs.name]) for runs in rivals)]
    several = [r for r in rivals if len(seeds[r.name]) > 1]
    if several:
        kept = rows[rows["method"].isin([baseline.name, *(_label(r, baseline) for r in several)]) & rows["metric"].isin(metrics)]
        table = build_table(kept, baseline.name, "", medium)
        out += [_difference_table(table, metrics), _verdicts(table, primary)]
    for runs in (r for r in rivals if len(seeds[r.name]) == 1):
        out += _over_prompts(runs, _label(runs, baseline), baseline, seeds[runs.name][0], metrics)
    if len(metrics) > 1:
        out += [f"{METRICS[primary].label} decides; p of the other metrics are not adjusted for how many there are."]
    return "\n\n".join(out) + "\n"


def _label(runs: Runs, baseline: Runs) -> str:
    return runs.name if runs.name != baseline.name else f"{runs.name} (given)"


def _rows(parts: Sequence[tuple[Runs, str, Sequence[int]]]) -> pd.DataFrame:
    """Rows as `eval.tables.collect` makes them, of the chosen seeds."""
    rows = [
        (label, *row[1:])
        for runs, label, seeds in parts
        for seed in seeds
        for row in run_rows(runs.folders[seed], Arm(*runs.place, runs.name, seed))
    ]
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS))


def _budget_line(runs: Runs, label: str, baseline: Runs, seeds: Sequence[int]) -> str:
    """Seeds and cost of a method, and by how much the latter differs."""
    spent = [f"{np.mean([runs.manifests[s]['budget'][name] for s in seeds]):,.0f} {name.replace('_', ' ')}" for name in COSTS]
    ratios = cost_ratios(runs, baseline, seeds)
    off = [f"{ratio:.2f} × {name.replace('_', ' ')}" for name, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE]
    budget = f"UNEQUAL BUDGET, {' and '.join(off)} of {baseline.name}" if off else "equal budget"
    alone = sorted(runs.folders.keys() - set(seeds))
    left = f"; without a partner and left out: {', '.join(map(str, alone))}" if alone else ""
    return f"- {markdown(label)}: {markdown(budget)} ({', '.join(spent)} a run); seeds {', '.join(map(str, seeds))}{left}"


def _difference_table(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """One row a metric and method."""
    out: Grid = {}
    for metric in metrics:
        grid = differences(table, metric)
        for head, cells in ({"Metric": [(heading(metric), False)] * len(grid["Method"])} | grid).items():
            out.setdefault(head, []).extend(cells)
    return markdown_table(out)


def _verdicts(table: pd.DataFrame, metric: str) -> str:
    """What the interval of each method's difference says."""
    rivals = table[(table["metric"] == metric) & (table["method"] != table["baseline"])]["method"]
    return "\n".join(f"- {markdown(verdict(table, metric, method))}" for method in rivals)


def _over_prompts(runs: Runs, label: str, baseline: Runs, seed: int, metrics: Sequence[str]) -> list[str]:
    """One seed: differences of prompts' means, with a bootstrap over prompts. Metrics of whole sets have no interval."""
    own, other = ({row[2]: row[3] for row in run_rows(r.folders[seed], Arm(*r.place, r.name, seed))} for r in (runs, baseline))
    means = [_prompt_means(side.folders[seed]) for side in (runs, baseline)]
    rows = []
    for metric in metrics:
        decimals, low, high, count, better = METRICS[metric].decimals, np.nan, np.nan, "–", np.nan
        if metric in means[0]:
            difference_P = (means[0][metric] - means[1][metric]).dropna().to_numpy()
            low, high = bootstrap_interval(difference_P, trimmed=0)
            count = str(len(difference_P))
            up = np.mean((difference_P > 0) + 0.5 * (difference_P == 0))
            better = {True: up, False: 1 - up, None: np.nan}[METRICS[metric].higher_is_better]
        spread = interval(low, high, decimals).strip() or "–"
        rows.append((heading(metric), number(own[metric] - other[metric], decimals), spread, count, number(better, 2)))
    heads = ("Metric", "Difference", "95 % interval over prompts", "Prompts", "Share of prompts better")
    return [
        f"{markdown(label)}, seed {seed} alone: intervals over prompts LEAVE OUT THE VARIANCE OF TRAINING; they hold for these "
        "two checkpoints and show nothing about the methods.",
        markdown_table({head: [(row[i], False) for row in rows] for i, head in enumerate(heads)}),
    ]


def _prompt_means(run: Path) -> pd.DataFrame:
    """One row a prompt: the mean of each metric over its samples, the accuracy also by skill (NaN for other skills)."""
    which, items = run_items(run)
    if "accuracy" in items:
        for skill in which["skill"].unique():
            items[f"accuracy/{skill}"] = items["accuracy"].where(which["skill"] == skill)
    return items.groupby(which["prompt_id"]).mean()


def main(argv: list[str] | None = None) -> int:
    """Compare and print; exit code 2 with one line where the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="…/<method>, or single …/<method>/seed<k>")
    parser.add_argument("--against", default=BASELINE, help=f"published method or folder to compare with (default: {BASELINE})")
    parser.add_argument("--metric", default="", help="the one metric to compare (default: all; accuracy decides)")
    parser.add_argument("--rows", type=Path, default=Path("results"), help="folder of the published runs (default: results)")
    parser.add_argument("--unequal-budget", action="store_true", help="go on where costs differ by more than 1 %%")
    args = parser.parse_args(argv)

    def command() -> None:
        rivals = find_runs(args.runs)
        baseline = find_baseline(args.against, args.rows, rivals[0].place)
        print(compare(rivals, baseline, args.metric, args.unequal_budget), end="")

    return run_command("compare", command)


if __name__ == "__main__":
    sys.exit(main())
