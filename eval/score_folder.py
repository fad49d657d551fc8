"""Score a folder of media made by any system: one row an item, one model in memory at a time, resumable after a kill.

What a scorer has found is appended to ``<partial>/<scorer>.csv`` under a key made of the item's bytes and prompt, so that a
second call scores only what is new or changed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

from eval.media import ENDINGS, match_prompts, read_picture
from eval.videos import DEFAULT_FPS, VIDEO_ENDINGS, Video, natural_key, read_video
from otca.errors import InputError
from otca.types import Prompt

FACTS = ("frames", "fps", "height", "width")
RESAMPLES = 2000
"""Bootstrap resamples of `summary`."""


@dataclass(frozen=True)
class Item:
    """A picture (``still``), a video or a folder of frames, with its prompt if a list names one; ``key``: content and prompt."""

    path: Path
    still: bool
    prompt: Prompt | None
    key: str

    def read(self) -> Video:
        """Frames and rate; a picture is one frame of rate 0. Raises InputError naming the file if it cannot be read."""
        if self.still:
            return Video(torch.from_numpy(read_picture(self.path)).unsqueeze(0), 0.0)
        return read_video(self.path, DEFAULT_FPS)


Score = Callable[[Sequence[Video], Sequence[Prompt | None]], dict[str, list[float]]]
"""From media of one size, and their prompts, to columns with one value an item."""


@dataclass(frozen=True)
class Scorer:
    """``load`` brings the model into memory; ``batch`` items of one size are scored together.

    ``identity`` tells its weights and settings, so that scores of others are not taken up again. ``tolerant``: an InputError
    about one item becomes that item's error, and the others go on.
    """

    name: str
    load: Callable[[], Score]
    batch: int = 1
    identity: str = ""
    tolerant: bool = False

    def key(self, item: Item) -> str:
        """What an item's row in the partial file goes by."""
        return hashlib.sha256(f"{self.identity} {item.key}".encode()).hexdigest()[:20]


def image_items(folder: Path, prompts_file: Path) -> list[Item]:
    """The folder's pictures in natural order. Raises InputError if there are none or prompts and files do not match."""
    return _items(folder, "images", lambda path: path.suffix.lower() in ENDINGS, ENDINGS, prompts_file)


def video_items(folder: Path, prompts_file: Path | None = None) -> list[Item]:
    """The folder's videos and sub-folders (each one video's frames), hidden ones passed over; errors as for images."""
    what = (*VIDEO_ENDINGS, "or a sub-folder of frames for each")
    return _items(folder, "videos", lambda path: path.is_dir() or path.suffix.lower() in VIDEO_ENDINGS, what, prompts_file)


def score_folder(items: Sequence[Item], scorers: Sequence[Scorer], partial: Path, progress: bool = True) -> pd.DataFrame:
    """One row an item: file, prompt_id, skill and text if there are prompts, `FACTS`, each scorer's columns, error.

    An item that cannot be read keeps its row: facts and scores are empty and ``error`` says why (it is "" elsewhere). Raises
    InputError if no item can be read; a scorer's own failure ends the call, and what was scored stays in ``partial``.
    """
    rows = pd.DataFrame({"file": [item.path.name for item in items]})
    if any(item.prompt for item in items):
        prompts = [item.prompt for item in items]
        rows["prompt_id"] = [p.id for p in prompts]
        rows["skill"] = [(p.spec or {}).get("skill", "") for p in prompts]
        rows["text"] = [p.text for p in prompts]
    errors: dict[str, str] = {}
    for scorer in (Scorer("facts", lambda: _facts, tolerant=True), *scorers):
        able = [item for item in items if item.key not in errors]
        if not able:
            raise InputError(f"none of {len(items)} files can be scored; the first: {errors[items[0].key]}")
        found = _complete(scorer, able, partial, errors, progress)
        for column in next(iter(found.values()), {}):
            rows[column] = [found.get(scorer.key(item), {}).get(column, np.nan) for item in items]
    rows["error"] = [errors.get(item.key, "") for item in items]
    if (rows["error"] != "").all():
        raise InputError(f"none of {len(items)} files can be scored; the first: {rows['error'][0]}")
    numbers = [name for name in rows.columns[rows.columns.get_loc(FACTS[0]) :] if name != "error"]
    rows.loc[rows["error"] != "", numbers] = np.nan
    return rows.astype({name: "Int64" for name in ("frames", "height", "width")})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score with its 95 % percentile bootstrap interval over prompts (over items where there are none)."""
    names = [name for name in rows.columns[rows.columns.get_loc(FACTS[-1]) + 1 :] if name != "error"]
    out = []
    for name in names:
        scored = rows[rows[name].notna()]
        means = scored.groupby("prompt_id")[name].mean() if "prompt_id" in rows else scored[name]
        low, high = np.nan, np.nan
        if len(means) > 1:
            spread = stats.bootstrap((means,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
            low, high = spread.confidence_interval
        out.append({"score": name, "mean": means.mean(), "low": low, "high": high, "items": len(scored), "prompts": len(means)})
    return pd.DataFrame(out)


# ---------------------------------------------------------------------------------------------------------------- items


def _items(folder: Path, what: str, is_one: Callable[[Path], bool], endings, prompts_file: Path | None) -> list[Item]:
    if not folder.is_dir():
        raise InputError(f"{what} folder {folder} not found")
    try:
        seen = [path for path in folder.iterdir() if not path.name.startswith(".") and is_one(path)]
    except OSError as error:
        raise InputError(f"{what} folder {folder} cannot be read ({error.strerror})") from error
    foreign = [path.name for path in seen if not _is_text(path.name)]
    if foreign:
        raise InputError(f"{what} folder {folder}: the name {foreign[0]!r} is not UTF-8, as rows are; rename the file")
    paths = sorted(seen, key=lambda path: natural_key(path.name))
    if not paths:
        raise InputError(f"{what} folder {folder} holds no {what.removesuffix('s')} ({', '.join(endings)})")
    prompts = match_prompts([path.name for path in paths], prompts_file, what) if prompts_file else [None] * len(paths)
    return [Item(path, what == "images", prompt, _key(path, prompt)) for path, prompt in zip(paths, prompts)]


def _key(path: Path, prompt: Prompt | None) -> str:
    digest = hashlib.sha256(json.dumps([path.name, prompt and prompt.text, prompt and prompt.spec], sort_keys=True).encode())
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(os.fsencode(file.name) + file.read_bytes())
    except OSError as error:  # `Item.read` will say so
        digest.update(str(error).encode())
    return digest.hexdigest()


def _is_text(name: str) -> bool:
    """Whether the bytes of a file's name are UTF-8; others come as lone surrogates."""
    return name.encode(errors="replace").decode() == name


def _facts(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
    shapes = [video.frames_FCHW.shape for video in media]
    values = [(frames, video.fps, height, width) for (frames, _, height, width), video in zip(shapes, media)]
    return dict(zip(FACTS, map(list, zip(*values))))


# ----------------------------------------------------------------------------------------------------- scored, or to score


def _complete(
    scorer: Scorer, items: Sequence[Item], partial: Path, errors: dict[str, str], progress: bool
) -> dict[str, dict[str, float]]:
    """Key → columns of every item, taken from the partial file or scored now; what cannot be goes to ``errors``."""
    path = partial / f"{scorer.name}.csv"
    rows = _read_partial(path)
    found = {key: rows[key] for key in map(scorer.key, items) if key in rows}
    left = [item for item in items if scorer.key(item) not in found]
    if not left:
        return found
    score = scorer.load()
    with tqdm(total=len(items), initial=len(found), desc=scorer.name, unit="item", disable=not progress) as bar:
        for chunk, media in _chunks(left, scorer.batch, errors, bar):
            try:
                columns = score(media, [item.prompt for item in chunk])
            except InputError as error:
                if not scorer.tolerant:
                    raise
                errors.update((item.key, _naming(item.path, error)) for item in chunk)
                continue
            new = {scorer.key(item): dict(zip(columns, values)) for item, values in zip(chunk, zip(*columns.values()))}
            _append(path, new)
            found |= new
            bar.update(len(chunk))
    return found


def _chunks(items: Sequence[Item], batch: int, errors: dict[str, str], bar) -> Iterator[tuple[list[Item], list[Video]]]:
    """Neighbours of one size, at most ``batch`` at a time; what cannot be read goes to ``errors``."""
    chunk: list[Item] = []
    media: list[Video] = []
    for item in items:
        try:
            video = item.read()
        except InputError as error:
            errors[item.key] = _naming(item.path, error)
            bar.set_postfix(unreadable=len(errors), refresh=False)
            continue
        if media and (len(media) == batch or video.frames_FCHW.shape != media[0].frames_FCHW.shape):
            yield chunk, media
            chunk, media = [], []
        chunk.append(item)
        media.append(video)
    if media:
        yield chunk, media


def _naming(path: Path, error: InputError) -> str:
    text = str(error)
    return text if path.name in text else f"video {path}: {text.removeprefix('video ')}"


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
