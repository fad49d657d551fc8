"""The published rows: five files a modality and tier, from which every table, figure and page is made, and nothing else.

    results/<modality>/<tier>/runs.csv        a run: task version, method, seed, config as JSON, budget, versions, commit, hash
                              metrics.csv     a run and metric: the mean over its test items, or the metric of the whole set
                              train.csv.gz    an iteration: train.csv, cumulative samples and seconds, validation_* before it
                              items.csv.gz    a test item: verdict, rewards, held-out metrics
                              probe.csv.gz    a prompt, step and objective: the signed credit of one fixed rollout
                              gallery/        a strip a method: the same prompts and noise from top to bottom

`gather` reads a run folder, `publish` puts runs in, `Store` reads. The same runs give the same bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from eval.evaluate import write_rows
from eval.media import read_video
from eval.video_writers import write_mp4
from otca.errors import InputError
from otca.runs import integrity_errors, is_finished, read_manifest

KEY = ["method", "seed"]
FILES = {"runs": "runs.csv", "metrics": "metrics.csv"} | {name: f"{name}.csv.gz" for name in ("train", "items", "probe")}
SPENT = ["samples", "network_evaluations", "reward_calls", "seconds"]  # cumulative columns of train.csv.gz
SMOOTHING = 5  # iterations of the moving average that follows a run without validation
ITEM = ["prompt_id", "sample", "skill", "text"]  # what identifies an item; its other columns are metrics
AS_WRITTEN = {"dtype": dict.fromkeys(("method", "prompt_id", "text", "skill"), str), "keep_default_na": False, "na_values": [""]}
"""How rows are read: a prompt ``None`` or ``007`` is that text, and a blank is no number."""
VERDICT = "verifier_correct"
"""Column of the training verifier's own verdict: what it accepts beyond the judge is the hacking gap."""
COST = "cost.json"  # file of a run folder with the seconds it took and the hardware
GALLERY_SEED, GALLERY_PROMPTS = 0, 7
"""The run whose samples are shown, chosen before any was made: the first prompt of each skill, or the first prompts."""
SCALE = 2  # enlargement of a clip in the gallery, which MP4's coding would blur otherwise


@dataclass(frozen=True)
class Store:
    """The rows of one modality and tier below ``root``; each frame is read once, when asked for."""

    root: Path
    modality: str
    tier: str
    folder = property(lambda self: self.root / self.modality / self.tier)

    def _read(self, name: str) -> pd.DataFrame:
        path = self.folder / FILES[name]
        if path.is_file():
            return pd.read_csv(path, **AS_WRITTEN, low_memory=False)
        if name == "probe":
            return pd.DataFrame(columns=KEY)
        raise InputError(f"{path} is missing; publish the runs: python -m reproduce.publish --modality {self.modality} …")

    runs = functools.cached_property(lambda self: self._read("runs"))
    metrics = functools.cached_property(lambda self: self._read("metrics"))
    train = functools.cached_property(lambda self: self._read("train"))
    items = functools.cached_property(lambda self: self._read("items"))
    probe = functools.cached_property(lambda self: self._read("probe"))

    @property
    def methods(self) -> list[str]:
        """Methods and variants that have runs."""
        return list(dict.fromkeys(self.runs["method"])) if (self.folder / FILES["runs"]).is_file() else []

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """One row a validation: method, seed, iteration, what was spent before it, and the validation_* columns, bare.

        Of runs that were not validated: one row an iteration, its samples' rewards as moving averages.
        """
        train = self.train.sort_values([*KEY, "iteration"])
        if names := [name for name in train if name.startswith("validation_")]:
            rows = train[names].join(train.groupby(KEY)[SPENT].shift(fill_value=0))
        else:
            names = [name for name in train if name.startswith("reward_") and name != "reward_calls"]
            smooth = train.groupby(KEY)[names].transform(lambda of: of.rolling(SMOOTHING, center=True, min_periods=1).mean())
            rows = smooth.join(train[SPENT])
        rows = train[[*KEY, "iteration"]].join(rows[[*SPENT, *names]]).dropna(subset=names, how="all")
        return rows.rename(columns={name: name.partition("_")[2] for name in names}).reset_index(drop=True)


def run_items(run: Path) -> pd.DataFrame:
    """The items of an evaluated run: `ITEM` and their metrics as numbers."""
    items = pd.read_csv(run / "scores.csv.gz", **AS_WRITTEN).rename(columns={"judge_correct": "accuracy"})
    return items[ITEM].join(items.drop(columns=ITEM).select_dtypes(["number", "bool"]).astype("float64"))


def run_values(run: Path) -> dict[str, float]:
    """Every metric of an evaluated run: means over items, ``accuracy/<skill>``, and those of the whole set (sets.csv)."""
    items = run_items(run)
    values = items.drop(columns=ITEM).mean(skipna=False).to_dict()
    if "accuracy" in items:
        values |= items.groupby("skill")["accuracy"].mean().add_prefix("accuracy/").to_dict()
    if VERDICT in values:
        values["hacking_gap"] = values.pop(VERDICT) - values["accuracy"]
    sets = pd.read_csv(run / "sets.csv")
    values |= dict(zip(sets["metric"], sets["value"].astype("float64")))
    bad = [metric for metric, value in values.items() if not np.isfinite(value)]
    if bad:
        raise InputError(f"{run}: {', '.join(bad)} has blank or non-finite values; score the run again")
    return values


def gather(run: Path) -> dict[str, pd.DataFrame]:
    """What a finished run adds to each of the files. Raises InputError for one that is unfinished or damaged."""
    if broken := integrity_errors(run):
        raise InputError(f"run {run} cannot be published: {broken[0]}")
    manifest, config = read_manifest(run), yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    cost = json.loads((run / COST).read_text()) if (run / COST).is_file() else {}
    key = {"method": manifest["method"], "seed": manifest["seed"]}
    own = {
        "task": manifest["protocol"].get("task", ""),
        **key,
        **{name: manifest["budget"].get(name, 0) for name in ("network_evaluations", "reward_calls")},
        **{name: cost.get(name) for name in ("train_seconds", "evaluate_seconds", "hardware")},
        "config": json.dumps(config, sort_keys=True),
        "protocol": json.dumps(manifest["protocol"], sort_keys=True),
        "versions": json.dumps({"python": manifest["python"], **manifest["libraries"]}, sort_keys=True),
        "commit": (manifest["code"].get("commit") or "") + ("+" if manifest["code"].get("changed") else ""),
        "hash": manifest["hash"],
    }
    frames = {
        "runs": pd.DataFrame([own]),
        "metrics": pd.DataFrame(run_values(run).items(), columns=["metric", "value"]),
        "items": run_items(run),
    }
    if (run / "train.csv").is_file():
        frames["train"] = _training(run, config["prompts_per_iteration"] * config["group_size"])
    if (run / "probe.csv").is_file():
        frames["probe"] = pd.read_csv(run / "probe.csv", **AS_WRITTEN)
    return {name: frame.assign(**key) for name, frame in frames.items() if len(frame)}


def _training(run: Path, samples: int) -> pd.DataFrame:
    """train.csv with cumulative samples and seconds, and what validation found before each iteration and after the last."""
    rows = pd.read_csv(run / "train.csv").set_index("iteration")
    rows["samples"] = np.arange(1, len(rows) + 1) * samples
    timing = run / "timing.csv"
    seconds = pd.read_csv(timing).set_index("iteration")["total"] if timing.is_file() else pd.Series(dtype=float)
    rows["seconds"] = seconds.reindex(rows.index).fillna(0).cumsum().round(1)
    if (run / "validation.csv").is_file():
        found = pd.read_csv(run / "validation.csv").set_index("iteration").filter(regex="^mean_")
        rows = rows.join(found.rename(columns=lambda name: name.replace("mean_", "validation_", 1)), how="outer")
    return rows.reset_index()


def finished_runs(root: Path, modality: str, tier: str) -> list[Path]:
    """Folders of the finished runs of a modality and tier below ``runs/``."""
    return [run for run in sorted((root / modality / tier).glob("*/seed*")) if is_finished(run)]


def publish(runs: Sequence[Path], root: Path, modality: str, tier: str) -> Store:
    """Put runs into the store below ``root``, in place of what it has of the same methods and seeds; returns it."""
    for run in runs:
        place = "/".join(read_manifest(run)[name] for name in ("modality", "tier"))
        if place != f"{modality}/{tier}":
            raise InputError(f"run {run} is of {place}, not of {modality}/{tier}")
    store, gathered = Store(root, modality, tier), [gather(run) for run in runs]
    replaced, frames = pd.concat([of_run["runs"] for of_run in gathered]).set_index(KEY).index, {}
    for name, file in FILES.items():
        parts = [of_run[name] for of_run in gathered if name in of_run]
        if (store.folder / file).is_file():
            old = getattr(store, name)
            parts = [old[~old.set_index(KEY).index.isin(replaced)], *parts]
        if parts:
            rows = pd.concat(parts, ignore_index=True).sort_values(KEY, kind="stable")
            frames[name] = rows[list(dict.fromkeys([*(["task"] if name == "runs" else []), *KEY, *rows]))]
    tasks = sorted(set(frames["runs"]["task"].fillna("")))
    if len(tasks) > 1:
        raise InputError(f"{store.folder} would mix tasks ({' and '.join(tasks)}); publish them apart, or delete the old rows")
    if "train" in frames:  # whole numbers, which a blank would turn into rounded ones
        frames["train"] = frames["train"].astype(dict.fromkeys(SPENT[:3], "Int64"))
    for name, frame in frames.items():
        write_rows(frame, store.folder / FILES[name])
    for run in runs:
        if run.name == f"seed{GALLERY_SEED}" and (run / "media" / "prompts.jsonl").is_file():
            _add_to_gallery(run, store.folder / "gallery")
    return Store(root, modality, tier)


def gallery_prompts(run: Path) -> list[dict]:
    """Rows of the run's media/prompts.jsonl that the gallery shows, one sample each."""
    chosen: dict[str, dict] = {}
    for line in (run / "media" / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen.setdefault((row["spec"] or {}).get("skill", row["id"]), row)
    return list(chosen.values())[:GALLERY_PROMPTS]


def _add_to_gallery(run: Path, folder: Path) -> None:
    """The run's strip, ``<method>.png`` or ``.mp4``, and ``prompts.csv``, which all strips share."""
    rows = gallery_prompts(run)
    write_rows(pd.DataFrame([{"prompt_id": row["id"], "text": row["prompt"]} for row in rows]), folder / "prompts.csv")
    files = [run / "media" / row["file"] for row in rows]
    if files[0].suffix == ".png":
        pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        Image.fromarray(np.concatenate(pixels)).save(folder / f"{run.parent.name}.png", optimize=True)
        return
    clips = [read_video(file) for file in files]
    stacked_FCHW = torch.cat([clip.frames_FCHW for clip in clips], dim=2)
    enlarged_FCHW = stacked_FCHW.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    write_mp4(folder / f"{run.parent.name}.mp4", enlarged_FCHW, clips[0].fps)


def verdicts(store: Store, methods: Sequence[str], prompt_ids: Sequence[str]) -> dict[str, list[bool | None]]:
    """Whether each method's shown sample of each prompt was judged right; None where it was not judged."""
    if "accuracy" not in store.items:
        return {method: [None] * len(prompt_ids) for method in methods}
    shown = store.items[(store.items["seed"] == GALLERY_SEED) & (store.items["sample"] == 0)]
    found = shown.set_index(["method", "prompt_id"])["accuracy"].astype(bool).to_dict()
    return {method: [found.get((method, prompt)) for prompt in prompt_ids] for method in methods}
