"""``python -m otca score``: media of any system, against a prompts file."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from otca import presets
from otca.bounds import at_least
from otca.cli import make_parser, parse
from otca.config import TrainConfig
from otca.errors import InputError, printable
from otca.types import Prompt

OWN_REWARDS = {"images": TrainConfig().rewards, "videos": presets.VIDEO["rewards"]}
"""What is measured unless told: the embedded tasks' rewards, where every prompt has a spec."""
FOR_VIDEOS = ("raft", "dino", "clip", "aesthetic", "musiq", "viclip", "vbench_means")
"""Options that images have no use for."""
NAMED = 5
"""Files without a prompt that are named before it is said how many more there are."""


def parser() -> ArgumentParser:
    """What to score, by what."""
    out = make_parser(
        "score", "Score images or videos of any system: one row an item, means with intervals printed; call again to resume."
    )
    out.add_argument("--images", type=Path | None, default=None, help="folder of images, in nested folders too")
    out.add_argument(
        "--videos", type=Path | None, default=None, help="folder of videos: mp4, gif, webp, or a sub-folder of frames for each"
    )
    out.add_argument("--prompts", type=Path, required=True, help="JSONL or CSV: prompt, id or file, spec where a scorer needs it")
    out.add_argument("--strict", type=bool, default=False, help="refuse files without a prompt, which else are named at the end")
    out.add_argument(
        "--rewards", type=str | None, default=None, help="names, with commas between them (default: the embedded task's own)"
    )
    out.add_argument("--held_out", type=bool, default=True, help="add the held-out metrics: judge, CLIP score")
    out.add_argument("--reward_files", type=str, default="", help="folder of published rewards' files, FOLDER/<reward>/<file>")
    out.add_argument(
        "--reward_timeout", type=float, default=TrainConfig.reward_timeout, help="seconds a batch may take; 0 is no limit"
    )
    out.add_argument(
        "--device",
        type=str,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where models run; the embedded ones stay on the CPU",
    )
    out.add_argument("--batch", type=int, default=16, help="items of one size that are scored together")
    out.add_argument("--motion", type=bool, default=True, help="add the metrics of motion (videos of at least 3 frames)")
    out.add_argument("--raft", type=Path | None, default=None, help="raft-things.pth: optical flow by RAFT, not by DIS")
    out.add_argument("--dino", type=Path | None, default=None, help="dino_vitbase16_pretrain.pth: adds subject_consistency")
    out.add_argument(
        "--clip", type=Path | None, default=None, help="ViT-B-32.pt, or an open_clip folder: adds background_consistency"
    )
    out.add_argument(
        "--aesthetic",
        type=Path | None,
        default=None,
        help="folder of ViT-L-14.pt and sa_0_4_vit_l_14_linear.pth: adds aesthetic_quality",
    )
    out.add_argument("--musiq", type=Path | None, default=None, help="musiq_spaq_ckpt-358bb6af.pth: adds imaging_quality")
    out.add_argument("--viclip", type=Path | None, default=None, help="ViClip-InternVid-10M-FLT.pth: adds overall_consistency")
    out.add_argument(
        "--vbench_means",
        type=Path | None,
        default=None,
        help="JSON of dimensions that VBench measured, for its scores (printed where --prompts is VBench_full_info.json)",
    )
    out.add_argument("--out", type=Path | None, default=None, help="CSV of the rows (default: scores.csv in the folder)")
    return out


def run(argv: list[str]) -> None:
    """Score, write the rows, print means with intervals."""
    from otca.distributed import usable_device

    given = parse(parser(), argv)
    if (given.images is None) == (given.videos is None):
        raise InputError("give either --images FOLDER or --videos FOLDER")
    at_least("batch", given.batch, 1)
    at_least("reward_timeout", given.reward_timeout, 0)
    given.device = str(usable_device(given.device))
    unused = [name for name in FOR_VIDEOS if given.images and given[name]]
    if unused:
        raise InputError(f"--{unused[0]} is for videos; leave it out, or give --videos FOLDER")
    import shutil

    from eval.evaluate import write_rows
    from eval.items import image_items, video_items
    from eval.metrics import vbench
    from eval.score_folder import score_folder, summary
    from otca.files import writable_folder

    folder = given.images or given.videos
    items, orphans = (image_items if given.images else video_items)(folder, given.prompts, given.strict)
    entries = vbench.read_entries(given.prompts) if given.videos else None
    means = vbench.read_means(given.vbench_means) if given.vbench_means else {}
    if means and entries is None:
        raise InputError(f"--vbench_means needs videos of VBench's prompts, and --prompts {given.prompts} is not its list")
    scorers = _scorers(given, entries, [item.prompt for item in items])
    out = given.out or folder / "scores.csv"
    partial = writable_folder(out.parent) / f".{out.name}.partial"
    rows = score_folder(items, scorers, partial)
    write_rows(rows, out)
    shutil.rmtree(partial)
    print(summary(rows).to_string(index=False, float_format="%.4f"))
    if entries:
        print(vbench.report(rows, entries, means))
    for line in rows.loc[rows["error"] != "", "error"]:
        print(f"not scored: {printable(line)}")
    if orphans:
        named = ", ".join(orphans[:NAMED]) + f" and {len(orphans) - NAMED} more" * (len(orphans) > NAMED)
        print(f"no prompt in {given.prompts}, so not scored: {printable(named)}")
    print(f"wrote {len(rows)} rows: {out}")


def _scorers(given, entries, prompts: list[Prompt]):
    """What is asked for; ``entries``: of VBench's list, if it is that; ``prompts``: of each item. Loads no model."""
    from eval import scorers
    from eval.metrics.alignment import JudgeAccuracy, VideoJudgeAccuracy

    known = all(prompt.spec for prompt in prompts)
    own = OWN_REWARDS["images" if given.images else "videos"] if known else []
    names = own if given.rewards is None else [name.strip() for name in given.rewards.strip("[]").split(",") if name.strip()]
    if not known:
        _refuse_readers_of_drawings(names, given.prompts)
    scorers.check_twice(names)
    judge = JudgeAccuracy if given.images else VideoJudgeAccuracy
    scorers.check_unfit(names, judge if given.held_out and known else None, prompts, given.prompts)
    out = _video_scorers(given, entries) if given.videos else []
    weights = (given.device, given.reward_files, given.reward_timeout)
    out += [scorers.reward_scorer(name, given.batch, *weights) for name in names]
    if given.held_out and known:
        out.append(scorers.held_out_images(given.batch) if given.images else scorers.held_out_videos())
    if entries and given.raft:
        out.append(scorers.static_scorer(given.raft, entries, given.device))
    if not out:
        raise InputError(f"nothing to score by: the prompts of {given.prompts} have no spec; name rewards with --rewards")
    return out


def _video_scorers(given, entries):
    """Metrics of videos alone."""
    from eval import scorers
    from eval.metrics.frame_quality import AestheticQuality, ImagingQuality

    if given.raft and not given.motion and not entries:
        raise InputError("--raft is for metrics of motion, which --motion false leaves out; leave out one of the two")
    out = [scorers.motion_scorer(given.raft, given.device)] if given.motion else []
    out += [scorers.dino_scorer(given.dino, given.device)] if given.dino else []
    out += [scorers.clip_scorer(given.clip, given.device)] if given.clip else []
    if given.motion and not (given.dino or given.clip):
        out.append(scorers.embedded_frames_scorer())
    models = ((AestheticQuality, given.aesthetic), (ImagingQuality, given.musiq))
    out += [scorers.quality_scorer(make, path, given.device) for make, path in models if path]
    return out + ([scorers.viclip_scorer(given.viclip, given.device)] if given.viclip else [])


def _refuse_readers_of_drawings(names: list[str], prompts: Path) -> None:
    """Raise InputError for rewards of the embedded tasks, where a prompt without spec shows that the media are of another."""
    from otca.rewards.base import REGISTRY, find_reward

    embedded = [name for name in names if hasattr(find_reward(name), "reads_drawings")]
    if embedded:
        near = [name for name in REGISTRY if any(name.startswith(f"{own}_") for own in embedded)]
        hint = f" (do you mean {near[0]}?)" if near else ""
        raise InputError(
            f"rewards {', '.join(embedded)} read drawings of the embedded tasks alone, and {prompts} has prompts without "
            f"spec{hint}; take rewards that read any picture (`python -m otca rewards`)"
        )
