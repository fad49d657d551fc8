"""``python -m otca sample``: media from a checkpoint or a finished run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.config import EvalConfig, PolicyConfig
from otca.parser import make_parser, parse


def parser() -> ArgumentParser:
    """What to sample from, and where to."""
    out = make_parser("sample", "Generate media by ODE: <prompt id>_<sample>.png (videos: .webp), and prompts.jsonl for `score`.")
    out.add_argument(
        "--run", type=Path, default=None, help="run folder: one of its checkpoints is used (default: the base model)"
    )
    out.add_argument("--checkpoint", type=str, default="last", help="which of the run's: last, best (in validation) or a number")
    out.add_argument("--out", type=Path, required=True, help="folder for the media")
    out.add_argument("--seed", type=int, default=0, help="noise seed")
    out.add_argument("--device", type=str, default="", help="where it runs: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    out.add_class_arguments(EvalConfig, "eval")
    out.add_class_arguments(PolicyConfig, "policy")
    return out


def run(argv: list[str]) -> None:
    """Sample and write the media."""
    given = parse(parser(), argv)
    settings, policy_config = given.eval, given.policy
    from eval.generate import generate
    from otca.checkpoint import load_weights
    from otca.distributed import usable_device
    from otca.files import writable_folder
    from otca.models.base import build_policy
    from otca.runs import config_of
    from otca.validation import chosen_checkpoint

    folder, chosen = writable_folder(given.out), None
    if given.run is not None:
        chosen, policy_config = chosen_checkpoint(given.run, given.checkpoint), config_of(given.run).policy
    policy = build_policy(policy_config, usable_device(given.device))
    if chosen is not None:
        load_weights(chosen, policy, settings.weights)
    media, _ = generate(policy, settings, given.seed, folder)
    print(f"wrote {len(media)} media: {folder}")
