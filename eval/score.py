"""`otca score`: media of any system, against a list of prompts.

Beside the rows (``scores.csv``) lies the protocol (``scores.json``): what each column was scored by, how media were turned, and
a digest of files and prompts. A second call with other rewards adds its columns where that digest is the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from otca import presets
from otca.bounds import at_least, check_bound
from otca.config import TrainConfig
from otca.errors import InputError, printable
from otca.files import writable_folder, write_atomic
from otca.untrusted import read_object

OWN_REWARDS = {"images": TrainConfig().rewards, "videos": presets.preset("video/quick")["rewards"]}
"""What is measured unless told: the embedded tasks' rewards, where every prompt has a spec."""
FOR_VIDEOS = ("raft", "dino", "clip", "aesthetic", "musiq", "viclip", "vbench_means")
"""Options that images have no use for."""
NAMED = 5
"""Files without a prompt, or not read, that are named before it is said how many more there are."""


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

    from eval.items import find_items
    from eval.metrics import vbench
    from eval.score_folder import score_folder, summary
    from otca.distributed import usable_device

    given.device = str(usable_device(given.device))
    place = given.images or given.videos
    found = find_items(place, bool(given.images), given.prompts, given.strict, given.orientation == "upright")
    entries = vbench.read_entries(given.prompts) if given.videos else None
    means = vbench.read_means(given.vbench_means) if given.vbench_means else {}
    if means and entries is None:
        raise InputError(f"--vbench_means needs videos of VBench's prompts, and --prompts {given.prompts} is not its list")
    scorers = _scorers(given, entries, [item.prompt for item in found.items])
    out = given.out or (place if place.is_dir() else place.parent)
    out = out / "scores.csv" if out.is_dir() else out
    protocol = {
        "orientation": given.orientation,
        "media": hashlib.sha256("".join(item.key for item in found.items).encode()).hexdigest(),
        "scorers": {scorer.name: scorer.identity for scorer in scorers},
    }
    writable_folder(out.parent)
    old = _earlier_rows(out, found.items, protocol)
    partial = out.parent / f".{out.name}.partial"
    rows = score_folder(found.items, scorers, partial)
    _write(rows if old is None else _joined(old, rows, {scorer.name for scorer in scorers}), protocol, out)
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


def _scorers(given: ScoreConfig, entries, prompts):
    """What is asked for; ``entries``: of VBench's list, if it is that; ``prompts``: of each item. Loads no model."""
    from eval import scorers

    kind = "images" if given.images else "videos"
    known = all(prompt.spec for prompt in prompts)
    own = OWN_REWARDS[kind] if known else []
    names = own if given.rewards is None else [name.strip() for name in given.rewards.strip("[]").split(",") if name.strip()]
    names = [*names, *(scorers.HELD_OUT[kind] if given.held_out and known else ())]
    scorers.check_rewards(names, prompts, given.prompts)
    out = scorers.video_scorers(given, entries) if given.videos else []
    weights = (given.device, given.reward_files, given.reward_timeout)
    out += [scorers.reward_scorer(name, given.batch, *weights) for name in names]
    if not out:
        raise InputError(f"nothing to score by: the prompts of {given.prompts} have no spec; name rewards with --rewards")
    return out


# ------------------------------------------------------------------------------------------------------- rows of before


def _earlier_rows(out: Path, items, protocol: dict):
    """Rows of an earlier call, to which columns are added; None where there are none. Raises InputError for those of others."""
    if not out.exists():
        return None
    import pandas as pd

    from eval.score_folder import listed_rows

    try:
        old = pd.read_csv(out, keep_default_na=False, dtype={"file": str, "prompt_id": str, "text": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{out} holds no rows of scores ({printable(error)}); choose another --out, or delete it") from error
    told = read_object(beside, "protocol") if (beside := out.with_suffix(".json")).is_file() else {}
    new = listed_rows(items)
    names = ["file", "prompt_id", "text"]
    same = all(name in old for name in names) and old[names].equals(new[names].astype(str))
    for key, what in (("orientation", "orientation"), ("media", "content of files, or prompts")):
        if same and told.get(key, protocol[key]) != protocol[key]:
            raise InputError(f"{out} was made with another {what}; choose another --out, or delete it to score anew")
    if not same:
        both = zip(old["file"], new["file"]) if "file" in old else ()
        first = next((f"{b} where it has {a}" for a, b in both if a != b), f"{len(new)} rows where it has {len(old)}")
        raise InputError(f"{out} holds rows of other files or prompts ({first}); choose another --out, or delete it")
    protocol["scorers"] = {**told.get("scorers", {}), **protocol["scorers"]}
    return old


def _joined(old, rows, again: set[str]):
    """The new rows with the earlier ones' other columns before ``error``, and errors of those not scored by ``again``."""
    numbers = rows.drop(columns="error")
    for name in old.columns.drop("error", errors="ignore"):
        if name not in numbers:
            numbers[name] = old[name].replace("", float("nan")).astype(float)
    errors = []
    for was, new in zip(old.get("error", [""] * len(rows)), rows["error"]):
        kept = [part for part in was.split("; ") if part and part.partition(":")[0] not in again and part not in new]
        errors.append("; ".join([*kept, *([new] if new else [])]))
    return numbers.assign(error=errors)


def _write(rows, protocol: dict, out: Path) -> None:
    from eval.evaluate import write_rows

    write_rows(rows, out)
    write_atomic(out.with_suffix(".json"), json.dumps(protocol, indent=1) + "\n")
