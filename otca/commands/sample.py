"""``python -m otca sample``: media from a checkpoint or a finished run."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.config import PolicyConfig
from otca.errors import InputError
from otca.eval_config import EvalConfig


def parser() -> ArgumentParser:
    """What to sample from, and where to."""
    out = make_parser("sample", "Generate media by ODE: <prompt id>_<sample>.png (videos: .webp), and prompts.jsonl for `score`.")
    out.add_argument("--run", type=Path, default=None, help="run folder: its newest checkpoint is used (default: the base model)")
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
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"run {run} has no config.yaml; give a folder that `python -m otca train` wrote")
    return PolicyConfig(**yaml.safe_load(path.read_text())["policy"])
