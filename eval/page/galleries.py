"""Published samples and credit curves as data of the page: the same prompt and noise, side by side across methods.

A run's ``media/prompts.jsonl`` says what was published of it; its ``probe.csv`` how its method credits one fixed stochastic
rollout of the same prompts. Pictures and clips are embedded as they are, up to `MOST_BYTES` in all.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pandas as pd

from eval.page.tables import TIERS
from eval.plots import COLORS
from otca.errors import InputError

MOST_METHODS = 24
"""Methods of a gallery: those of the tables first."""

MOST_PROMPTS = 8

MOST_BYTES = 8 * 2**20
"""Bytes of all samples together, before base64 makes a third more of them."""

SUM = "all"
"""Objective of a probe whose method credits one sum (`reproduce.probe`)."""

TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
"""What is embedded; of a clip in another format the MP4 beside it."""


def galleries(results: Path) -> list[dict]:
    """A gallery for each modality and tier with published samples, in the order of tiers.

    Each: ``id``, ``modality``, ``tier``, ``methods`` shown, ``left_out`` methods, ``without_curve`` methods, ``objectives`` of
    the curves, and ``prompts``: ``id``, ``text``, ``skill``, ``samples`` (one a method or None: ``src``, ``right``, ``curve``).
    Raises InputError on a listing that cannot be used.
    """
    media = [path.parent for path in results.glob("*/*/*/seed*/media/prompts.jsonl")]
    places = {folder.parents[2] for folder in media}
    tiers = {place: TIERS.index(place.name) if place.name in TIERS else len(TIERS) for place in places}
    out, left = [], MOST_BYTES
    for place in sorted(places, key=lambda place: (place.parent.name, tiers[place], place.name)):
        runs = _runs(place)
        gallery, spent = _gallery(place, runs, left)
        out.append(gallery)
        left -= spent
    return out


def _runs(place: Path) -> dict[str, Path]:
    """Method → its first run with samples: the methods of Tables 1 to 4 in their order, then the others, then the variants."""
    found: dict[str, Path] = {}
    for listing in sorted(place.glob("*/seed*/media/prompts.jsonl")):
        found.setdefault(listing.parents[2].name, listing.parents[1])
    tables = sorted(place.parents[1].glob(f"table*/{place.name}/table.csv"))
    known = [*dict.fromkeys([name for path in tables for name in pd.read_csv(path)["method"]] + [*COLORS])]
    rank = {name: (known.index(name) if name in known else len(known), "@" in name, name) for name in found}
    return {name: found[name] for name in sorted(found, key=rank.__getitem__)}


def _gallery(place: Path, runs: dict[str, Path], left: int) -> tuple[dict, int]:
    """One gallery of at most ``left`` bytes of samples, and how many bytes they are."""
    listed = {method: _listing(run / "media" / "prompts.jsonl") for method, run in runs.items()}
    prompts = {row["id"]: row for rows in listed.values() for row in rows.values()}
    prompts = dict(list(prompts.items())[:MOST_PROMPTS])
    shown, spent = [], 0
    for method in [*runs][:MOST_METHODS]:
        size = sum(row["path"].stat().st_size for key, row in listed[method].items() if key in prompts)
        if spent + size <= left:
            shown.append(method)
            spent += size
    curves = {method: credit_curves(runs[method] / "probe.csv") for method in shown}
    judged = {method: _verdicts(runs[method] / "scores.csv.gz") for method in shown}
    names = dict.fromkeys(name for of_run in curves.values() for of_prompt in of_run.values() for name in of_prompt)
    rows = []
    for key, prompt in prompts.items():
        samples = [_sample(listed[m].get(key), judged[m].get(key), curves[m].get(key)) for m in shown]
        rows.append({"id": key, "text": prompt["prompt"], "skill": prompt["skill"], "samples": samples})
    gallery = {
        "id": f"gallery-{place.parent.name}-{place.name}",
        "modality": place.parent.name,
        "tier": place.name,
        "methods": shown,
        "left_out": [method for method in runs if method not in shown],
        "without_curve": [method for method in shown if not curves[method]],
        "objectives": sorted(names, key=lambda name: name == SUM),
        "prompts": rows,
    }
    return gallery, spent


def _listing(path: Path) -> dict[str, dict]:
    """Prompt id → ``id``, ``prompt``, ``skill`` and ``path`` of the sample, from a prompts.jsonl."""
    out = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key, text, file = (str(row[name]) for name in ("id", "prompt", "file"))
            skill = str((row.get("spec") or {}).get("skill", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: no sample with id, prompt, file and spec ({error!r})") from error
        sample = path.parent / file
        sample = sample if sample.suffix in TYPES else sample.with_suffix(".mp4")
        if Path(file).name != file or not sample.is_file():
            raise InputError(f"{path}, line {number}: the sample {file!r} is not beside it; publish the run again")
        out[key] = {"id": key, "prompt": text, "skill": skill, "path": sample}
    return out


def _verdicts(path: Path) -> dict[str, bool]:
    """Prompt id → whether the held-out judge found its first sample right; empty where it was not asked."""
    scores = pd.read_csv(path, dtype={"prompt_id": str})
    first = scores[scores["sample"] == 0]
    return dict(zip(first["prompt_id"], first["judge_correct"] == 1)) if "judge_correct" in scores else {}


def _sample(row: dict | None, right: bool | None, curve: dict | None) -> dict | None:
    """One cell: the sample as a ``data:`` address, the judge's answer, the credit of the prompt's probe."""
    if row is None:
        return None
    address = f"data:{TYPES[row['path'].suffix]};base64,{base64.b64encode(row['path'].read_bytes()).decode()}"
    return {"src": address, "right": None if right is None else bool(right), "curve": curve}


def credit_curves(path: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Prompt id → objective → [step, credit] of each trained step, from a probe.csv; empty where there is none."""
    if not path.is_file():
        return {}
    rows = pd.read_csv(path, dtype={"prompt_id": str, "objective": str})
    missing = {"prompt_id", "step", "objective", "credit"} - {*rows}
    if missing or not rows[["step", "credit"]].notna().all(axis=None):
        raise InputError(f"{path} is no probe: column {', '.join(sorted(missing)) or 'step or credit'} is missing or has blanks")
    out: dict[str, dict[str, list[list[float]]]] = {}
    for prompt, objective, step, credit in zip(rows["prompt_id"], rows["objective"], rows["step"], rows["credit"]):
        out.setdefault(prompt, {}).setdefault(objective, []).append([int(step), float(credit)])
    return out
