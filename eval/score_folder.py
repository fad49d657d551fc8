"""Score media made by any system: one row an item, one model in memory at a time, resumable after a kill.

What a scorer has found is appended to ``<partial>/<scorer>.csv`` under a key made of the item's bytes and prompt, so that a
second call scores only what is new or changed.
"""

from __future__ import annotations

import csv
import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

from eval.items import Item
from eval.media import Video
from otca.errors import InputError, RewardError
from otca.types import Prompt

FACTS = ("frames", "fps", "height", "width")
_LIST, _READING = "the list of files", "facts"
"""What fills the first columns."""
RESAMPLES = 2000
"""Bootstrap resamples of `summary`."""
BATCH_PIXELS = 256_000_000
"""Pixels that are scored together at most, beyond one item."""

Score = Callable[[Sequence[Video], Sequence[Prompt]], dict[str, list[float]]]
"""From media of one size and rate, and their prompts, to columns with one value an item."""


@dataclass(frozen=True)
class Scorer:
    """``load`` brings the model into memory; ``batch`` items of one size are scored together.

    ``identity`` tells its weights and settings, so that scores of others are not taken up again. An InputError about one item
    becomes that item's error, and the others go on.
    """

    name: str
    load: Callable[[], Score]
    batch: int = 1
    identity: str = ""

    def key(self, item: Item) -> str:
        """What an item's row in the partial file goes by."""
        return hashlib.sha256(f"{self.identity} {item.key}".encode()).hexdigest()[:20]


def listed_rows(items: Sequence[Item]) -> pd.DataFrame:
    """What is known before anything is scored: file, prompt_id, skill, text."""
    cells = [(item.name, item.prompt.id, (item.prompt.spec or {}).get("skill", ""), item.prompt.text) for item in items]
    return pd.DataFrame(cells, columns=["file", "prompt_id", "skill", "text"])


def score_folder(items: Sequence[Item], scorers: Sequence[Scorer], partial: Path, progress: bool = True) -> pd.DataFrame:
    """One row an item: `listed_rows`, `FACTS`, each scorer's columns, error.

    An item that cannot be read keeps its row: facts and scores are empty and ``error`` says why (it is "" elsewhere). One that a
    scorer cannot score lacks that scorer's columns alone. Raises InputError if no item can be read or scored, and where
    two scorers fill one column; a scorer's own failure ends the call, and what was scored stays in ``partial``.
    """
    rows, unreadable = listed_rows(items), {}
    unscored: dict[str, list[str]] = {item.key: [] for item in items}
    filled = dict.fromkeys([*rows.columns, "error"], _LIST)
    for scorer in (Scorer(_READING, lambda: _facts), *scorers):
        able = [item for item in items if item.key not in unreadable]
        failed: dict[str, str] = {}
        found = _complete(scorer, able, partial, unreadable, failed, progress)
        gc.collect()  # models that refer to themselves go too before the next one comes
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        for key, error in failed.items():
            unscored[key].append(f"{scorer.name}: {error}")
        if all(item.key in unreadable for item in items):
            raise InputError(f"none of {len(items)} files can be scored; the first: {unreadable[items[0].key]}")
        for column in next(iter(found.values()), {}):
            if column in filled:
                raise InputError(f"column {column!r} is filled by {filled[column]} and by {scorer.name}; leave one of them out")
            filled[column] = scorer.name
            rows[column] = [float(found.get(scorer.key(item), {}).get(column, np.nan)) for item in items]
    rows["error"] = [unreadable.get(item.key) or "; ".join(unscored[item.key]) for item in items]
    numbers = [column for column, name in filled.items() if name != _LIST]
    rows.loc[[item.key in unreadable for item in items], numbers] = np.nan
    scores = [column for column, name in filled.items() if name not in (_LIST, _READING)]
    if (rows["error"] != "").any() and rows[scores].isna().all(axis=None):
        raise InputError(f"none of {len(items)} files can be scored; the first: {next(filter(None, rows['error']))}")
    return rows.astype({name: "Int64" for name in ("frames", "height", "width")})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score with its 95 % percentile bootstrap interval over prompts."""
    names = [name for name in rows.columns[rows.columns.get_loc(FACTS[-1]) + 1 :] if name != "error"]
    out = []
    for name in names:
        scored = rows[rows[name].notna()]
        means = scored.groupby("prompt_id")[name].mean()
        low, high = np.nan, np.nan
        if len(means) > 1:
            spread = stats.bootstrap((means,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
            low, high = spread.confidence_interval
        out.append({"score": name, "mean": means.mean(), "low": low, "high": high, "items": len(scored), "prompts": len(means)})
    return pd.DataFrame(out)


def _facts(media: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    shapes = [video.frames_FCHW.shape for video in media]
    values = [(frames, video.fps, height, width) for (frames, _, height, width), video in zip(shapes, media)]
    return dict(zip(FACTS, map(list, zip(*values))))


# ----------------------------------------------------------------------------------------------------- scored, or to score


def _complete(
    scorer: Scorer, items: Sequence[Item], partial: Path, unreadable: dict[str, str], failed: dict[str, str], progress: bool
) -> dict[str, dict[str, float]]:
    """Key → columns of every item, taken from the partial file or scored now; errors of the others by their keys."""
    path = partial / f"{scorer.name}.csv"
    rows = _read_partial(path)
    found = {key: rows[key] for key in map(scorer.key, items) if key in rows}
    left = [item for item in items if scorer.key(item) not in found]
    if not left:
        return found
    score = scorer.load()
    with tqdm(total=len(items), initial=len(found), desc=scorer.name, unit="item", disable=not progress) as bar:
        for chunk, media in _chunks(left, scorer.batch, unreadable, bar):
            new = _scored(scorer, score, chunk, media, failed)
            if new:
                _append(path, new)
            found |= new
            bar.update(len(new))
    return found


def _scored(
    scorer: Scorer, score: Score, chunk: Sequence[Item], media: Sequence[Video], failed: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Key → columns of what can be scored. Of several items that a scorer refuses, each is tried alone."""
    try:
        columns = score(media, [item.prompt for item in chunk])
    except InputError as error:
        if len(chunk) == 1:
            failed[chunk[0].key] = _naming(chunk[0], error)
            return {}
        alone = [_scored(scorer, score, [item], [video], failed) for item, video in zip(chunk, media)]
        return {key: row for rows in alone for key, row in rows.items()}
    except RewardError as error:
        others = f" and {len(chunk) - 1} after it" * (len(chunk) > 1)
        error.add_note(f"it was scoring {chunk[0].path}{others}")
        raise
    return {scorer.key(item): dict(zip(columns, values)) for item, values in zip(chunk, zip(*columns.values()))}


def _chunks(items: Sequence[Item], batch: int, unreadable: dict[str, str], bar) -> Iterator[tuple[list[Item], list[Video]]]:
    """Neighbours of one size and rate, at most ``batch`` at a time; what cannot be read goes to ``unreadable``."""
    chunk: list[Item] = []
    media: list[Video] = []
    for item in items:
        try:
            video = item.read()
        except InputError as error:
            unreadable[item.key] = _naming(item, error)
            bar.set_postfix(unreadable=len(unreadable), refresh=False)
            continue
        pixels = 3 * BATCH_PIXELS // video.frames_FCHW.numel()
        if media and (len(media) >= min(batch, pixels) or _kind(video) != _kind(media[0])):
            yield chunk, media
            chunk, media = [], []
        chunk.append(item)
        media.append(video)
    if media:
        yield chunk, media


def _kind(video: Video) -> tuple[torch.Size, float]:
    return video.frames_FCHW.shape, video.fps


def _naming(item: Item, error: InputError) -> str:
    text, kind = str(error), "image" if item.still else "video"
    return text if str(item.path) in text else f"{kind} {item.path}: {text.removeprefix(f'{kind} ')}"


def _read_partial(path: Path) -> dict[str, dict[str, float]]:
    """Key → columns of a partial file's rows; a last line that a kill cut short is taken off the file."""
    if not path.is_file():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return {row.pop("key"): {n: float(v) for n, v in row.items()} for row in csv.DictReader(whole.splitlines())}


def _append(path: Path, rows: dict[str, dict[str, float]]) -> None:
    """Add rows to a partial file, which is begun anew where it has other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = ",".join(["key", *next(iter(rows.values()))]) + "\n"
    with open(path, "a+") as file:
        file.seek(0)
        if file.readline() != header:
            file.truncate(0)
            file.write(header)
        file.write("".join(",".join([key, *(repr(float(v)) for v in row.values())]) + "\n" for key, row in rows.items()))
