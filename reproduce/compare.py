"""Runs of one's own, and runs made elsewhere, beside published ones.

    python -m reproduce.compare runs/image/cpu/my_method                    differences from static_multi_reward, paired by seed
    python -m reproduce.compare runs/image/cpu/my_method --against otca     from another published method, or a folder of runs
    python -m reproduce.compare --external theirs.csv --kind reported --place image/cpu --out runs/compared
                                                                               their curve and row beside ours

What would make the comparison invalid is an error: another task, protocol or set of prompts, unequal cost, a held-out metric
that was trained on, damaged runs. p is adjusted over the methods given; what else was tried is not counted.

``--external`` takes a CSV, also W&B's export of a chart or table, with columns for samples, network evaluations or iterations,
and rewards (matched by name). It is marked as what it is: ``reported`` (their numbers), ``re-scored`` (their samples, our
`score`) or ``re-trained`` (our engine). It has no seeds in common with ours, so it gets no difference and no p.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eval.evaluate import write_rows
from eval.figures import learning_curves
from eval.held_out import held_out_names
from eval.markup import Grid, interval, number, show
from eval.stats import bootstrap_interval
from eval.store import FILES, ITEM, KEY, SPENT, Store, gather
from eval.tables import BASELINE, TOLERANCE, build_table, metric_of, primary_of, said, write_table
from otca.errors import InputError, nearest
from otca.presets import SEEDS
from otca.rewards.base import measured
from otca.runs import CONFIG, differing, is_finished, read_manifest
from reproduce.run import run_script, script
from reproduce.table import RESULTS

KINDS = ("reported", "re-scored", "re-trained")
COLUMNS = {
    "samples": r"samples?|images|num_samples|samples_seen",
    "network_evaluations": r"(network_)?evaluations|nfe|network_evals",
    "iteration": r"iterations?|steps?|_step|global_step|epoch",
}
"""What a foreign column is, by its name in small letters; W&B's "run - metric" is read by its metric."""
COSTS = ["network_evaluations", "reward_calls"]
ONE_SEED = " One seed: intervals over prompts leave out the variance of training and show nothing about the method."
Frames = dict[str, pd.DataFrame]
"""Rows by the name of their file, as a store has them."""


# ------------------------------------------------------------------------------------------------------- which runs
def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Runs in folders of seeds or of methods (whose ``seed*`` are meant). Raises InputError where there are none."""
    found = {path: [path] if (path / CONFIG).is_file() or is_finished(path) else sorted(path.glob("seed*")) for path in paths}
    if empty := [path for path, folders in found.items() if not folders]:
        raise InputError(f"{empty[0]} holds no finished run; give a run's folder (…/seed0), or a method's with its seed* inside")
    return [folder for folders in found.values() for folder in folders]


def frames_of(runs: Sequence[Path], suffix: str = "") -> Frames:
    """The rows of runs. Raises InputError on one that is damaged, and where a method has a seed twice."""
    gathered = [gather(run) for run in runs]
    frames = {name: pd.concat([of[name] for of in gathered if name in of], ignore_index=True) for name in gathered[0]}
    twice = frames["runs"][frames["runs"].duplicated(KEY)]
    if len(twice):
        raise InputError(f"two of these runs are {twice['method'].iloc[0]} seed {twice['seed'].iloc[0]}; give one of them")
    return {name: frame.assign(method=frame["method"] + suffix) for name, frame in frames.items()}


def baseline_frames(against: str, published: Store) -> tuple[str, Frames]:
    """Name and rows of a published method, or of the runs in a folder."""
    if against in published.methods:
        return against, {name: frame[frame["method"] == against] for name in FILES for frame in [getattr(published, name)]}
    if not Path(against).is_dir():
        known, hint = ", ".join(published.methods) or "nothing", nearest(against, published.methods)
        raise InputError(f"--against {against}: no folder of runs, nor published in {published.folder}{hint} (there: {known})")
    frames = frames_of(run_folders([Path(against)]))
    names = list(dict.fromkeys(frames["runs"]["method"]))
    if len(names) > 1:
        raise InputError(f"--against {against} holds several methods ({', '.join(names)}); give one")
    return names[0], frames


# ---------------------------------------------------------------------------------------------- may they be compared
def check_comparable(own: Frames, other: Frames, place: str, unequal_budget: bool) -> None:
    """Raise InputError, in one line, for what would make the comparison of one method's runs with the baseline's invalid."""
    runs, base = own["runs"].set_index("seed"), other["runs"].set_index("seed")
    common, names = runs.index.intersection(base.index), [side["method"].iloc[0] for side in (runs, base)]
    both = " and ".join(names)
    if not len(common):
        raise InputError(f"no common seeds: {names[0]} has {list(runs.index)}, {names[1]} {list(base.index)}; run the baseline's")
    for seed in common:
        sides = [side.loc[seed] for side in (base, runs)]
        if sides[0]["hash"] == sides[1]["hash"]:
            raise InputError(f"{both}, seed {seed}, are one and the same run ({sides[0]['hash']})")
        how = [json.loads(side["protocol"]) | {"training prompts": json.loads(side["config"])["prompts"]} for side in sides]
        if changed := differing(*how):
            raise InputError(f"{both} were trained or evaluated by different protocols ({'; '.join(changed)}); make both alike")
        items = [of["items"].loc[of["items"]["seed"] == seed, ITEM].reset_index(drop=True) for of in (other, own)]
        if not items[0].equals(items[1]):
            raise InputError(f"{both} were judged on different prompts; evaluate both on the same list")
    held_out = {m for m in own["metrics"]["metric"] if metric_of(m).held_out}.union(*map(measured, held_out_names(place)))
    for side, name in ((own, names[0]), (other, names[1])):
        rewards = [n for config in side["runs"].query("reward_calls > 0")["config"] for n in json.loads(config)["rewards"]]
        trained = {c.removeprefix("reward_") for c in side.get("train", pd.DataFrame()) if c.startswith("reward_")}
        trained |= set().union(*(measured(n.partition("?")[0].rpartition("/")[2]) for n in rewards if ":" not in n))
        if wrong := sorted(trained & held_out):
            raise InputError(f"{name} was trained on {', '.join(wrong)}, which the evaluation holds out")
    ratios = runs.loc[common, COSTS].sum() / base.loc[common, COSTS].sum()
    off = [f"{ratio:.2f} times the {cost.replace('_', ' ')}" for cost, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE]
    if off and not unequal_budget:
        raise InputError(f"unequal budget: {names[0]} had {' and '.join(off)} of {names[1]}; say --unequal-budget to go on")


def compare(paths: Sequence[Path], against: str, root: Path, unequal_budget: bool = False) -> pd.DataFrame:
    """The table of differences of these runs from the baseline: rows of `eval.tables.build_table`."""
    folders = run_folders(paths)
    places = sorted({"/".join(read_manifest(run)[key] for key in ("modality", "tier")) for run in folders})
    if len(places) > 1:
        raise InputError(f"these runs are of {' and '.join(places)}; compare one modality and tier at a time")
    modality, _, tier = places[0].partition("/")
    baseline, other = baseline_frames(against, Store(root, modality, tier))
    own = frames_of(folders)
    if baseline in set(own["runs"]["method"]):
        own = frames_of(folders, " (given)")
    methods = list(dict.fromkeys(own["runs"]["method"]))
    for method in methods:
        check_comparable({name: rows[rows["method"] == method] for name, rows in own.items()}, other, places[0], unequal_budget)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), modality, tier)
        for name in own.keys() | other.keys():
            write_rows(pd.concat([of[name] for of in (other, own) if name in of and len(of[name])]), store.folder / FILES[name])
        budget = "as given" if unequal_budget else "equal budget"
        table = build_table(store, [baseline, *methods], list(other["metrics"]["metric"].unique()), baseline, budget)
        for method in table.loc[(table["n_seeds"] == 1) & (table["method"] != baseline), "method"].unique():
            table = _over_prompts(table, store, method, baseline)
    return table


def _over_prompts(table: pd.DataFrame, store: Store, method: str, baseline: str) -> pd.DataFrame:
    """One seed: intervals of the difference by a bootstrap over prompts, in place of those over seeds that cannot be had."""
    items, seed = store.items, store.runs.loc[store.runs["method"] == method, "seed"].iloc[0]
    names = [name for name in items if name not in (*KEY, *ITEM)]
    means = items[items["seed"] == seed].groupby(["method", "prompt_id"])[names].mean()
    for metric in set(names) & set(table["metric"]):
        difference_P = (means.loc[method][metric] - means.loc[baseline][metric]).dropna().to_numpy()
        at = (table["method"] == method) & (table["metric"] == metric)
        table.loc[at, ["diff_low", "diff_high"]] = bootstrap_interval(difference_P, trimmed=0)
    return table


# --------------------------------------------------------------------------------------------------------- made elsewhere
def external_rows(path: Path, name: str, samples: int) -> pd.DataFrame:
    """A foreign CSV as rows of train.csv.gz; ``samples``: of an iteration, where the file counts iterations alone."""
    try:
        given = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--external {path}: no CSV with a header ({' '.join(str(error).split())})") from error
    found, metrics = {}, {}
    for column in given.select_dtypes("number"):
        bare = str(column).rpartition(" - ")[2].strip().lower()
        kind = next((kind for kind, pattern in COLUMNS.items() if re.fullmatch(pattern, bare)), None)
        known = re.sub(r"^(reward|eval|val|test|mean)[_/]", "", bare).replace("/", "_").removesuffix("_mean")
        if not bare.endswith(("__min", "__max")):
            (found if kind else metrics).setdefault(kind or f"validation_{known}", given[column])
    if not metrics or not ({"samples", "iteration"} & set(found)):
        needed = "a column of samples or iterations and one a reward"
        raise InputError(f"--external {path}: needs {needed}; it has {', '.join(given)}")
    samples_N = found["samples"] if "samples" in found else found["iteration"] * samples
    rows = pd.DataFrame({"method": name, "seed": 0, "samples": samples_N, **metrics})
    rows = rows.assign(network_evaluations=found.get("network_evaluations", np.nan), reward_calls=np.nan, seconds=np.nan)
    rows = rows.dropna(subset=list(metrics), how="all").sort_values("samples").reset_index(drop=True)
    rows[SPENT] = rows[SPENT].shift(-1)  # in a store a validation stands before its row's iteration
    return rows.assign(iteration=range(len(rows)))


def overlay(store: Store, external: pd.DataFrame, kind: str, out: Path) -> pd.DataFrame:
    """Curves of the published comparison and of a foreign run in ``out``; returns their last values, one row a method."""
    name = f"{external['method'].iloc[0]} ({kind})"
    ours = [method for method in (BASELINE, "otca", "process_credit") if method in store.methods]
    shared = [c for c in external if c.startswith("validation_") and c in store.train]
    if not shared:
        known = ", ".join(c for c in store.train if c.startswith("validation_"))
        raise InputError(f"the file and {store.folder} share no metric; ours: {known}")
    with tempfile.TemporaryDirectory() as folder:
        joined = Store(Path(folder), store.modality, store.tier)
        kept = store.train.loc[store.train["method"].isin(ours), [*KEY, "iteration", *SPENT, *shared]]
        write_rows(pd.concat([kept, external[kept.columns].assign(method=name)]), joined.folder / FILES["train"])
        write_rows(store.runs, joined.folder / FILES["runs"])
        for spent in ("samples", "network_evaluations"):
            if external[spent].notna().any():
                panels = [(c.removeprefix("validation_"), spent) for c in shared]
                learning_curves(joined, [*ours, name], out / f"curves-{spent}", panels)
        last = joined.curves.sort_values("iteration").groupby(KEY, sort=False).last()
        rows = last.groupby("method", sort=False).mean().drop(columns=["iteration", "reward_calls", "seconds"]).reset_index()
    if external["network_evaluations"].isna().all():
        rows.loc[rows["method"] == name, "network_evaluations"] = np.nan
    write_rows(rows, out / "compared.csv")
    return rows


# ------------------------------------------------------------------------------------------------------------- command
def main(argv: list[str] | None = None) -> int:
    parser = script("compare", __doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="…/<method>, or single …/<method>/seed<k>")
    parser.add_argument("--against", default=BASELINE, help=f"published method or folder to compare with (default: {BASELINE})")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="root of the published stores (default: results)")
    parser.add_argument("--unequal-budget", action="store_true", help="go on where costs differ by more than 1 %%")
    parser.add_argument("--external", type=Path, metavar="CSV", help="a run made elsewhere, to overlay on published curves")
    parser.add_argument("--kind", choices=KINDS, default="reported", help="what the external numbers are (default: reported)")
    parser.add_argument("--samples", type=int, default=0, help="samples an iteration, where the external run counts these")
    parser.add_argument("--place", default="image/cpu", help="modality/tier of the external run's rivals (default: image/cpu)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the table and the curves")
    return run_script(parser, _compare, argv)


def _compare(args: argparse.Namespace) -> None:
    if not args.runs and args.external is None:
        raise InputError("give folders of runs, or --external with a CSV file")
    if args.runs:
        table = compare(args.runs, args.against, args.rows, args.unequal_budget)
        title, primary = f"Against {table['baseline'].iloc[0]}", primary_of(table, "accuracy")
        rows = table[table["method"] != table["baseline"]]
        told = f"{title}: {', '.join(f'{m}, {n} seeds' for m, n in rows.groupby('method', sort=False)['n_seeds'].max().items())}"
        show(told, _differences(rows), said(table, primary) + (ONE_SEED if rows["n_seeds"].eq(1).any() else ""))
        if args.out:
            write_table(table, args.out, title, [], primary)
    if args.external is not None:
        modality, _, tier = args.place.partition("/")
        if tier not in SEEDS:
            raise InputError(f"--place {args.place}: give modality/tier, such as image/cpu")
        rows, out = external_rows(args.external, args.external.stem, args.samples), args.out or Path("runs/compared")
        rows = overlay(Store(args.rows, modality, tier), rows, args.kind, out)
        columns = {c: [f"{v:.4g}" if isinstance(v, float) else str(v) for v in rows[c]] for c in rows}
        show(f"{args.kind}, beside {args.place}", columns, f"curves: {out}")


def _differences(rows: pd.DataFrame) -> Grid:
    """Columns for the terminal: one row a metric and method."""
    digits = [metric_of(m).decimals for m in rows["metric"]]
    return {
        "Metric": [metric_of(m).label for m in rows["metric"]],
        **({"Method": list(rows["method"])} if rows["method"].nunique() > 1 else {}),
        "Mean": [number(v, d) for v, d in zip(rows["mean"], digits)],
        "Difference": [number(r.diff, d) + interval(r.diff_low, r.diff_high, d) for r, d in zip(rows.itertuples(), digits)],
        "p (Holm)": [number(p, 3) for p in rows["p_holm"]],
        "P(better)": [number(p, 2) for p in rows["prob_improvement"]],
    }


if __name__ == "__main__":
    sys.exit(main())
