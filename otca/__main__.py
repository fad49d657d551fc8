"""Command line: ``python -m otca train|plan|sample|score|prompts``. Errors of the user end with one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from otca import presets
from otca.cli import make_parser, parse
from otca.config import EvalConfig, PolicyConfig, TrainConfig
from otca.errors import InputError, RewardError

COMMANDS = {
    "train": "train a generator with a method",
    "plan": "what a run needs before it is launched: memory a GPU by part, evaluations, FLOPs, hours",
    "sample": "generate media from a checkpoint or a finished run",
    "score": "score a folder of images or videos, made by any system, against a prompts file",
    "prompts": "fetch a published prompt list (needs the network) and check it",
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m otca COMMAND [--help]\n")
        print("\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items()))
        print("\ntables: python -m reproduce.table1 --help")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return _refuse("otca", f"unknown command {argv[0]!r}{hint} (known: {', '.join(COMMANDS)})")
    try:
        {"train": _train, "plan": _plan, "sample": _sample, "score": _score, "prompts": _prompts}[argv[0]](argv[1:])
    except (InputError, RewardError, argparse.ArgumentError) as error:
        return _refuse(f"otca {argv[0]}", str(error))
    return 0


def _refuse(program: str, message: str) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


# ------------------------------------------------------------------------------------------------------------- train


PRECEDENCE = "Precedence: defaults < --preset < method < --config < command line."


def train_parser() -> ArgumentParser:
    """Every field of `TrainConfig`, plus preset, method settings from YAML, and the run folder."""
    parser = _run_parser("train", f"Train a generator. {PRECEDENCE}")
    parser.add_argument("--out", type=Path, default=None, help="run folder (default: runs/adhoc/<method>/seed<seed>)")
    parser.add_argument("--dry_run", type=bool, default=False, help="print the resolved settings and stop")
    return parser


def _run_parser(command: str, description: str) -> ArgumentParser:
    """What every command has that takes the settings of a run."""
    parser = make_parser(command, description)
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_argument("--preset", type=str, default="image/quick", help="medium/tier whose settings to start from")
    parser.add_class_arguments(TrainConfig)
    return parser


def _resolve(parser: ArgumentParser, argv: list[str]):
    """What a command line asks for: everything given, the config of the run, its method."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="image/quick")
    early.add_argument("--method", default="otca")
    chosen, _ = early.parse_known_args(argv)
    from baselines import find_method

    method = find_method(chosen.method)
    parser.set_defaults(presets.preset(chosen.preset) | method.settings | {"method": method.name, "preset": chosen.preset})
    given = parse(parser, argv)
    config = TrainConfig(**{name: given[name] for name in TrainConfig.__dataclass_fields__})
    if config.method != method.name:
        raise InputError(
            f"method {config.method!r} is set in the YAML file; name it on the command line: --method {config.method}"
        )
    return given, config, method


def _train(argv: list[str]) -> None:
    given, config, method = _resolve(train_parser(), argv)
    if given.dry_run:
        print(_yaml(config), end="")
        return
    from tqdm import tqdm

    from otca.runs import begin_run
    from otca.trainer import Trainer

    folder = given.out or Path("runs/adhoc") / config.method / f"seed{config.seed}"
    trainer = Trainer(config, method, folder)
    begin_run(folder, config)
    main = trainer.accelerator.is_main_process
    with tqdm(total=config.iterations, unit="iteration", disable=not main) as bar:

        def show(row):
            bar.n = row["iteration"] + 1
            bar.set_postfix_str(" ".join(f"{n} {row[f'reward_{n}']:.3f}" for n in (r.name for r in trainer.rewards)))

        trainer.run(show)
    trainer.accelerator.end_training()
    if main:
        print(f"trained {config.method}, seed {config.seed}: {folder}")


# -------------------------------------------------------------------------------------------------------------- plan


def plan_parser() -> ArgumentParser:
    """The settings of a run, and the machine that it is to run on."""
    from otca.plan import GPUS, SHARDINGS, UTILISATION

    gpus = ", ".join(f"{name} ({memory} GB, {tflops} TFLOP/s)" for name, (memory, tflops) in GPUS.items())
    parser = _run_parser("plan", f"What a run needs before it is launched; nothing is downloaded or trained. {PRECEDENCE}")
    parser.add_argument("--processes", type=int, default=1, help="processes, one a GPU")
    parser.add_argument("--sharding", type=str, default="none", help=f"how weights are spread: {' or '.join(SHARDINGS)}")
    parser.add_argument("--gpu", type=str, default="h100", help=f"GPU: {gpus}")
    parser.add_argument(
        "--utilisation", type=float, default=UTILISATION, help="share of the GPU's TFLOP/s that is reached (assumed)"
    )
    return parser


def _plan(argv: list[str]) -> None:
    from otca.plan import check_gpu, describe, plan

    given, config, method = _resolve(plan_parser(), argv)
    check_gpu(given.gpu, given.utilisation)
    made = plan(config, method, given.processes, given.sharding)
    print(describe(made, given.gpu, given.utilisation, given.processes), end="")


# ------------------------------------------------------------------------------------------------------------ sample


def sample_parser() -> ArgumentParser:
    """What to sample from, and where to."""
    parser = make_parser(
        "sample", "Generate media by ODE: <prompt id>_<sample>.png (videos: .webp), and prompts.jsonl for `score`."
    )
    parser.add_argument(
        "--run", type=Path, default=None, help="run folder: its newest checkpoint is used (default: the base model)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the media")
    parser.add_argument("--seed", type=int, default=0, help="noise seed")
    parser.add_class_arguments(EvalConfig, "eval")
    parser.add_class_arguments(PolicyConfig, "policy")
    return parser


def _sample(argv: list[str]) -> None:
    parser = sample_parser()
    given = parse(parser, argv)
    settings, policy_config = given.eval, given.policy
    from eval.generate import generate
    from otca.checkpoint import checkpoints
    from otca.files import verify_hashes, writable_folder
    from otca.policies.base import build_policy

    folder, newest = writable_folder(given.out), None
    if given.run is not None:
        found = checkpoints(given.run)
        if not found:
            raise InputError(f"run {given.run} has no checkpoint; give a folder that `python -m otca train` wrote")
        newest, policy_config = found[-1], _run_policy(given.run)
        verify_hashes(newest)
    policy = build_policy(policy_config)
    if newest is not None:
        policy.load(newest)
    media, _ = generate(policy, settings, given.seed, folder)
    print(f"wrote {len(media)} media: {folder}")


def _run_policy(run: Path) -> PolicyConfig:
    import yaml

    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"run {run} has no config.yaml; give a folder that `python -m otca train` wrote")
    return PolicyConfig(**yaml.safe_load(path.read_text())["policy"])


# ------------------------------------------------------------------------------------------------------------- score


OWN_REWARDS = {"images": TrainConfig().rewards, "videos": presets.VIDEO["rewards"]}
"""What `score` measures unless told: the embedded tasks' rewards, where every prompt has a spec."""


def score_parser() -> ArgumentParser:
    """What to score, by what."""
    parser = make_parser("score", "Score images or videos of any system: one row an item, means printed.")
    parser.add_argument("--images", type=Path | None, default=None, help="folder of images")
    parser.add_argument(
        "--videos", type=Path | None, default=None, help="folder of videos: mp4, gif, webp, or a sub-folder of frames for each"
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="JSONL or CSV: prompt, id or file, spec where a scorer needs it"
    )
    parser.add_argument(
        "--rewards", type=list[str] | None, default=None, help="rewards, by name (default: the embedded task's own)"
    )
    parser.add_argument("--held_out", type=bool, default=True, help="add the held-out metrics: judge, CLIP score")
    parser.add_argument("--raft", type=Path | None, default=None, help="raft-things weights: optical flow by RAFT, not by DIS")
    parser.add_argument("--dino", type=Path | None, default=None, help="folder of DINO ViT-B/16: adds subject_consistency")
    parser.add_argument("--clip", type=Path | None, default=None, help="folder of CLIP ViT-B/32: adds background_consistency")
    parser.add_argument("--out", type=Path | None, default=None, help="CSV of the rows (default: scores.csv in the folder)")
    return parser


def _score(argv: list[str]) -> None:
    given = parse(score_parser(), argv)
    if (given.images is None) == (given.videos is None):
        raise InputError("give either --images FOLDER or --videos FOLDER")
    from eval.evaluate import write_rows
    from otca.files import writable_folder

    folder = given.images or given.videos
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a folder of images or videos")
    out = given.out or folder / "scores.csv"
    writable_folder(out.parent)
    rows = _score_images(given) if given.images else _score_videos(given)
    write_rows(rows, out)
    numbers = rows.select_dtypes(["number", "bool"]).drop(columns=["sample", "frames", "fps", "height", "width"], errors="ignore")
    print(numbers.astype(float).agg(["mean", "std"]).T.to_string(float_format="%.4f"))
    if "error" in rows:
        failed = rows[rows["error"] != ""]
        print("\n".join(f"not scored: {line}" for line in failed["error"]), end="\n" if len(failed) else "")
    print(f"wrote {len(rows)} rows: {out}")


def _score_images(given):
    from eval.evaluate import score_items
    from eval.held_out import ImageHeldOut
    from eval.media import read_images
    from otca.rewards.base import build_reward

    media_BFCHW, prompts, files = read_images(given.images, given.prompts)
    known = all(prompt.spec for prompt in prompts)
    names = given.rewards if given.rewards is not None else OWN_REWARDS["images"] if known else []
    held_out = ImageHeldOut() if given.held_out and known else None
    if not names and held_out is None:
        raise InputError(f"nothing to score by: the prompts of {given.prompts} have no spec; name rewards with --rewards")
    rows = score_items(media_BFCHW, prompts, [build_reward(name) for name in names], held_out)
    rows.insert(0, "file", files)
    return rows


def _score_videos(given):
    from eval.metrics.alignment import VideoJudgeAccuracy
    from eval.metrics.flow import load_flow
    from eval.metrics.motion import clip_encoder, dino_encoder, embedded_encoder
    from eval.score_videos import score_videos
    from otca.prompts import load_prompts
    from otca.rewards.base import build_reward

    known = all(prompt.spec for prompt in load_prompts(str(given.prompts)))
    names = given.rewards if given.rewards is not None else OWN_REWARDS["videos"] if known else []
    scorers = [build_reward(name) for name in names]
    if given.held_out and known:
        scorers.append(VideoJudgeAccuracy())
    encoders = [make(folder) for make, folder in ((dino_encoder, given.dino), (clip_encoder, given.clip)) if folder]
    return score_videos(given.videos, given.prompts, load_flow(given.raft), encoders or [embedded_encoder()], scorers)


# ----------------------------------------------------------------------------------------------------------- prompts


def prompts_parser() -> ArgumentParser:
    """Which list, and where to."""
    from otca.published_prompts import LISTS

    parser = make_parser("prompts", "Fetch a published prompt list at its pinned commit (this needs the network) and check it.")
    listed = "; ".join(f"{name}: {one.what}" for name, one in LISTS.items())
    parser.add_argument("--list", type=str, required=True, help=listed)
    parser.add_argument("--out", type=Path, default=Path("prompts"), help="folder to write to (default: prompts)")
    return parser


def _prompts(argv: list[str]) -> None:
    from otca.prompts import load_prompts
    from otca.published_prompts import fetch_list

    given = parse(prompts_parser(), argv)
    path = fetch_list(given.list, given.out)
    rows = load_prompts(str(path))
    print(f"{path}: {len(rows):,} prompts, checked; the first: {rows[0].text[:100]}")


def _yaml(config: TrainConfig) -> str:
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


if __name__ == "__main__":
    sys.exit(main())
