"""`otca score`: media of any system, against a list of prompts.

Beside the rows (``scores.csv``) lies the protocol (``scores.json``): what each column was scored by, how media were turned, and
a digest of files and prompts; a second call with other rewards adds its columns where that digest is the same. One model is in
memory at a time. What a scorer has found is appended to ``.scores.csv.partial/<scorer>.jsonl`` under a key made of the item's
bytes and prompt, so that after a kill only what is new or changed is scored.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eval.evaluate import write_rows
from eval.items import Item, find_items
from eval.media import Video
from eval.metrics import vbench
from eval.scorers import Score, Scorer, all_scorers
from eval.stats import bootstrap_interval
from otca.bounds import at_least, check_bound
from otca.config import TrainConfig
from otca.distributed import usable_device
from otca.errors import InputError, RewardError, printable
from otca.files import named, read_json, read_object, writable_folder, write_atomic
from otca.types import Prompt

log = logging.getLogger(__name__)

FOR_VIDEOS = ("raft", "dino", "clip", "aesthetic", "musiq", "viclip", "vbench_means")
"""Options that images have no use for."""
FACTS = ("frames", "fps", "height", "width")
RESAMPLES = 2000  # bootstrap resamples of `summary`
BATCH_PIXELS = 256_000_000  # pixels that are scored together at most, beyond one item
Columns = dict[str, dict[str, float]]  # key of an item → its columns
Errors = dict  # key of an item → what is wrong: one line, or a list of lines
NAMED = 5  # files without a prompt, or not read, that are named before it is said how many more there are


@dataclass
class ScoreConfig:
    """What to score, by what."""

    prompts: Path
    """list of prompts: any file that trainings take; a column file, file_name, image or image_path names the media"""
    images: Path | None = None
    """folder of images, in nested folders too, or one image"""
    videos: Path | None = None
    """folder of videos (mp4, mov, webm, mkv, avi, gif, webp, or a sub-folder of frames for each), or one video"""
    strict: bool = False
    """refuse files that have no prompt or are not read, which else are named at the end"""
    orientation: Literal["upright", "stored"] = "upright"
    """upright: turned as EXIF and display matrix say; stored: as published scorers read them"""
    rewards: str | None = None
    """names, with commas between them (default: the embedded task's own)"""
    held_out: bool = True
    """add the held-out metrics of the embedded tasks: judge, CLIP score"""
    reward_files: str = ""
    """folder of published rewards' files, FOLDER/<reward>/<file>"""
    reward_timeout: float = TrainConfig.reward_timeout
    """seconds a batch may take; 0 is no limit"""
    device: str = ""
    """where models run: cpu, cuda, cuda:1 (default: a GPU if there is one); the embedded ones stay on the CPU"""
    batch: int = 16
    """items of one size that are scored together"""
    motion: bool = True
    """add the metrics of motion (videos of at least 3 frames)"""
    raft: Path | None = None
    """raft-things.pth: optical flow by RAFT, not by DIS"""
    dino: Path | None = None
    """dino_vitbase16_pretrain.pth: adds subject_consistency"""
    clip: Path | None = None
    """ViT-B-32.pt, or an open_clip folder: adds background_consistency"""
    aesthetic: Path | None = None
    """folder of ViT-L-14.pt and sa_0_4_vit_l_14_linear.pth: adds aesthetic_quality"""
    musiq: Path | None = None
    """musiq_spaq_ckpt-358bb6af.pth: adds imaging_quality"""
    viclip: Path | None = None
    """ViClip-InternVid-10M-FLT.pth: adds overall_consistency"""
    vbench_means: Path | None = None
    """JSON of dimensions that VBench measured, for its scores (printed where prompts is VBench_full_info.json)"""
    out: Path | None = None
    """CSV of the rows, or a folder for it (default: scores.csv in the folder of the media)"""


def score(given: ScoreConfig) -> None:
    """Score, write rows and protocol, print means with intervals. Raises InputError for what cannot be scored."""
    if (given.images is None) == (given.videos is None):
        raise InputError("give either --images FOLDER or --videos FOLDER")
    check_bound("batch", given.batch, at_least(1))
    check_bound("reward_timeout", given.reward_timeout, at_least(0))
    unused = [name for name in FOR_VIDEOS if given.images and getattr(given, name)]
    if unused:
        raise InputError(f"--{unused[0]} is for videos; leave it out, or give --videos FOLDER")
    given.device = str(usable_device(given.device))
    place = given.images or given.videos
    found = find_items(place, bool(given.images), given.prompts, given.strict, given.orientation == "upright")
    entries = vbench.read_entries(given.prompts) if given.videos else None
    means = vbench.read_means(given.vbench_means) if given.vbench_means else {}
    if means and entries is None:
        raise InputError(f"--vbench_means needs videos of VBench's prompts, and --prompts {given.prompts} is not its list")
    scorers = all_scorers(given, entries, [item.prompt for item in found.items])
    out = given.out or (place if place.is_dir() else place.parent)
    out = out / "scores.csv" if out.is_dir() else out
    protocol = {
        "orientation": given.orientation,
        "media": hashlib.sha256("".join(item.key for item in found.items).encode()).hexdigest(),
        "scorers": {scorer.name: scorer.identity for scorer in scorers},
    }
    writable_folder(out.parent)
    _check_beside(out)
    old = _earlier_rows(out, found.items, protocol)
    partial = out.parent / f".{out.name}.partial"
    rows = score_folder(found.items, scorers, partial)
    write_rows(rows if old is None else _joined(old, rows, {scorer.name for scorer in scorers}), out)
    write_atomic(out.with_suffix(".json"), json.dumps(protocol, indent=1) + "\n")
    shutil.rmtree(partial)
    print(summary(rows).to_string(index=False, float_format="%.4f"))
    if entries:
        print(vbench.report(rows, entries, means))
    for line in rows.loc[rows["error"] != "", "error"]:
        print(f"not scored: {printable(line)}")
    for why, names in ((f"no prompt in {given.prompts}", found.orphans), ("not read", found.unread)):
        if names:
            named = ", ".join(names[:NAMED]) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)
            print(f"{why}, so not scored: {printable(named)}")
    print(f"wrote {len(rows)} rows, media {given.orientation}: {out}")


def listed_rows(items: Sequence[Item]) -> pd.DataFrame:
    """What is known before anything is scored: file, prompt_id, skill, text."""
    cells = [(item.name, item.prompt.id, (item.prompt.spec or {}).get("skill", ""), item.prompt.text) for item in items]
    return pd.DataFrame(cells, columns=["file", "prompt_id", "skill", "text"])


def score_folder(items: Sequence[Item], scorers: Sequence[Scorer], partial: Path, progress: bool = True) -> pd.DataFrame:
    """One row an item: `listed_rows`, `FACTS`, each scorer's columns, and ``error``, which says what cannot be read or scored.

    Raises InputError if nothing can be, and where two scorers fill one column; a scorer's own failure ends the call, and what was
    scored stays in ``partial``.
    """
    rows = listed_rows(items).set_axis([item.key for item in items])
    known, unread, unscored = list(rows), {}, defaultdict(list)
    for scorer in (Scorer("facts", lambda: _facts), *scorers):
        readable = [item for item in items if item.key not in unread]
        found = _columns(scorer, readable, partial / f"{scorer.name}.jsonl", progress, unread, unscored)
        gc.collect()  # models that refer to themselves go too before the next one comes
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        columns = pd.DataFrame.from_dict(found, orient="index", dtype=float)
        if twice := [column for column in columns if column in (*rows, "error")]:
            raise InputError(f"column {twice[0]!r} is filled twice, again by {scorer.name}; leave one of the two out")
        rows = rows.join(columns)
    rows.loc[list(unread), rows.columns.drop(known)] = np.nan
    rows["error"] = [unread.get(item.key) or "; ".join(unscored[item.key]) for item in items]
    scores = rows.columns.drop([*known, *FACTS, "error"], errors="ignore")
    if (rows["error"] != "").any() and rows[scores].isna().all(axis=None):
        raise InputError(f"none of {len(items)} files can be scored; the first: {next(filter(None, rows['error']))}")
    return rows.reset_index(drop=True).astype({name: "Int64" for name in ("frames", "height", "width")})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score with its 95 % percentile bootstrap interval over prompts."""
    out = []
    for name in rows.columns[rows.columns.get_loc(FACTS[-1]) + 1 :].drop("error"):
        means = rows.groupby("prompt_id")[name].mean().dropna()
        low, high = bootstrap_interval(means, resamples=RESAMPLES, trimmed=0)
        items = rows[name].notna().sum()
        out.append({"score": name, "mean": means.mean(), "low": low, "high": high, "items": items, "prompts": len(means)})
    return pd.DataFrame(out)


def _facts(media: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    values = [(len(video.frames_FCHW), video.fps, *video.frames_FCHW.shape[2:]) for video in media]
    return dict(zip(FACTS, map(list, zip(*values))))


def _columns(scorer: Scorer, items: list[Item], path: Path, progress: bool, unread: Errors, unscored: Errors) -> Columns:
    """Key of each item that is read and scored → its columns, from the partial file or made now; the others become errors."""
    lines, known = path.read_bytes().splitlines() if path.is_file() else [], {}
    for line in filter(None, lines):
        try:
            key, row = json.loads(line)
            known[key] = {name: float(value) for name, value in row.items()}
        except (ValueError, TypeError, AttributeError):
            log.warning("%s has a line that is cut short, or none of scores; what it was of is scored again", path)
    found = {item.key: known[scorer.key(item)] for item in items if scorer.key(item) in known}
    left = [item for item in items if item.key not in found]
    if not left:
        return found
    score = scorer.load()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(items), initial=len(found), desc=scorer.name, unit="item", disable=not progress) as bar:
        for chunk, media in _chunks(left, scorer.batch, unread):
            new = _scored(scorer.name, score, chunk, media, unscored)
            with named(path), open(path, "a") as file:
                file.writelines(f"\n{json.dumps([scorer.key(item), new[item.key]])}" for item in chunk if item.key in new)
            found |= new
            bar.update(len(new))
    return found


def _chunks(items: list[Item], batch: int, unread: Errors) -> Iterator[tuple[list[Item], list[Video]]]:
    """Neighbours of one size and rate, at most ``batch`` at a time."""
    chunk, media = [], []
    for item in items:
        try:
            video = item.read()
        except InputError as error:
            unread[item.key] = _naming(item, error)
            continue
        most = max(1, min(batch, 3 * BATCH_PIXELS // video.frames_FCHW.numel()))
        if media and (len(media) >= most or (video.frames_FCHW.shape, video.fps) != (media[-1].frames_FCHW.shape, media[-1].fps)):
            yield chunk, media
            chunk, media = [], []
        chunk.append(item)
        media.append(video)
    if media:
        yield chunk, media


def _scored(name: str, score: Score, chunk: list[Item], media: list[Video], unscored: Errors) -> Columns:
    """Key → columns of what can be scored. Of several items that a scorer refuses, each is tried alone."""
    try:
        columns = score(media, [item.prompt for item in chunk])
    except InputError as error:
        if len(chunk) == 1:
            unscored[chunk[0].key].append(f"{name}: {_naming(chunk[0], error)}")
            return {}
        alone = [_scored(name, score, [item], [video], unscored) for item, video in zip(chunk, media)]
        return {key: row for rows in alone for key, row in rows.items()}
    except RewardError as error:
        error.add_note(f"it was scoring {chunk[0].path}{f' and {len(chunk) - 1} after it' * (len(chunk) > 1)}")
        raise
    return {item.key: dict(zip(columns, map(float, row))) for item, row in zip(chunk, zip(*columns.values()))}


def _naming(item: Item, error: InputError) -> str:
    text, kind = str(error), "image" if item.still else "video"
    return text if str(item.path) in text else f"{kind} {item.path}: {text.removeprefix(f'{kind} ')}"


def _check_beside(out: Path) -> None:
    """Raise InputError where the protocol would take the place of the rows, or of a file that is none."""
    beside = out.with_suffix(".json")
    if beside == out:
        raise InputError(f"--out {out}: rows are CSV, and the protocol lies beside them under that name; let it end in .csv")
    told = read_json(beside, "protocol") if beside.is_file() else {"scorers": {}}
    if not (isinstance(told, dict) and isinstance(told.get("scorers"), dict)):
        raise InputError(f"{beside} is no protocol of a scoring, whose place it has; choose another --out, or move it")


def _earlier_rows(out: Path, items: Sequence[Item], protocol: dict) -> pd.DataFrame | None:
    """Rows of an earlier call, to which columns are added; None where there are none. Raises InputError for those of others."""
    if not out.exists():
        return None
    try:
        old = pd.read_csv(out, keep_default_na=False, dtype={"file": str, "prompt_id": str, "text": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{out} holds no rows of scores ({printable(error)}); choose another --out, or delete it") from error
    beside, names, new = out.with_suffix(".json"), ["file", "prompt_id", "text"], listed_rows(items)
    told = read_object(beside, "protocol") if beside.is_file() else {}
    if not (all(name in old for name in names) and old[names].equals(new[names].astype(str))):
        both = zip(old["file"], new["file"]) if "file" in old else ()
        first = next((f"{b} where it has {a}" for a, b in both if a != b), f"{len(new)} rows where it has {len(old)}")
        raise InputError(f"{out} holds rows of other files or prompts ({first}); choose another --out, or delete it")
    for key, what in (("orientation", "orientation"), ("media", "content of files, or prompts")):
        if told.get(key, protocol[key]) != protocol[key]:
            raise InputError(f"{out} was made with another {what}; choose another --out, or delete it to score anew")
    protocol["scorers"] = {**told.get("scorers", {}), **protocol["scorers"]}
    return old


def _joined(old: pd.DataFrame, rows: pd.DataFrame, again: set[str]) -> pd.DataFrame:
    """The new rows with the earlier ones' other columns before ``error``, text of the user's too, and errors not of ``again``."""
    numbers = rows.drop(columns="error")
    for name in old.columns.drop("error", errors="ignore").difference(numbers.columns, sort=False):
        values = pd.to_numeric(old[name], errors="coerce")
        numbers[name] = values if values.isna().eq(old[name].astype(str) == "").all() else old[name]
    errors = []
    for was, new in zip(old.get("error", [""] * len(rows)), rows["error"]):
        kept = [part for part in was.split("; ") if part and part.partition(":")[0] not in again and part not in new]
        errors.append("; ".join([*kept, *([new] if new else [])]))
    return numbers.assign(error=errors)
