"""``python -m otca sample``: media from a checkpoint or a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from jsonargparse import ArgumentParser

from otca.cli import check_settings, make_parser, parse, read_settings
from otca.config import PolicyConfig
from otca.errors import InputError, printable
from otca.eval_config import EvalConfig


def parser() -> ArgumentParser:
    """What to sample from, and where to."""
    out = make_parser("sample", "Generate media by ODE: <prompt id>_<sample>.png (videos: .webp), and prompts.jsonl for `score`.")
    out.add_argument(
        "--run", type=Path, default=None, help="run folder: one of its checkpoints is used (default: the base model)"
    )
    out.add_argument("--checkpoint", type=str, default="last", help="which of the run's: last, best (in validation) or a number")
    out.add_argument("--out", type=Path, required=True, help="folder for the media")
    out.add_argument("--seed", type=int, default=0, help="noise seed")
    out.add_class_arguments(EvalConfig, "eval")
    out.add_class_arguments(PolicyConfig, "policy")
    return out


def run(argv: list[str]) -> None:
    """Sample and write the media."""
    given = parse(parser(), argv)
    settings, policy_config = given.eval, given.policy
    from eval.generate import generate
    from otca.files import verify_hashes, writable_folder
    from otca.policies.base import build_policy

    folder, chosen = writable_folder(given.out), None
    if given.run is not None:
        chosen, policy_config = _chosen(given.run, given.checkpoint), _run_policy(given.run)
        verify_hashes(chosen)
    policy = build_policy(policy_config)
    if chosen is not None:
        policy.load(chosen)
    media, _ = generate(policy, settings, given.seed, folder)
    print(f"wrote {len(media)} media: {folder}")


def _chosen(run: Path, which: str) -> Path:
    """Folder of the checkpoint that is asked for. Raises InputError where there is none such."""
    from otca.checkpoint import checkpoints, iteration_of
    from otca.validation import best_iteration

    found = {iteration_of(path): path for path in checkpoints(run)}
    if not found:
        raise InputError(f"run {run} has no checkpoint; give a folder that `python -m otca train` wrote")
    best = best_iteration(run)
    if which == "best" and best is None:
        raise InputError(f"run {run} has no validation, so none of its checkpoints is best; train with validation.every")
    if which == "best" and best == 0:
        raise InputError(f"the best of {run} is the model before training; sample it without --run")
    number = {"last": max(found), "best": best}.get(which, int(which) if which.isdigit() else -1)
    if number not in found:
        raise InputError(f"checkpoint {which!r} of {run} is not there (there are: last, best, {', '.join(map(str, found))})")
    return found[number]


def _run_policy(run: Path) -> PolicyConfig:
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"run {run} has no config.yaml; give a folder that `python -m otca train` wrote")
    content, options = {"policy": read_settings(path).get("policy")}, make_parser("sample", "")
    options.add_class_arguments(PolicyConfig, "policy")
    check_settings(content, options, path)
    try:
        return options.instantiate(options.parse_object(content)).policy
    except argparse.ArgumentError as error:
        raise InputError(f"settings {path}: {printable(error)}") from error
