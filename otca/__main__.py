"""Command line: ``python -m otca COMMAND``. Errors of the user end with one line and exit code 2."""

from __future__ import annotations

import importlib
import sys

from otca.errors import nearest, printable
from otca.signals import run_command

COMMANDS = {
    "train": "train a generator with a method",
    "plan": "what a run needs before it is launched: memory a GPU by part, evaluations, FLOPs, hours",
    "sample": "generate media from a checkpoint or a finished run",
    "export": "write a folder for the hub from a run: weights as diffusers reads them, model card, samples",
    "score": "score a folder of images or videos, made by any system, against a prompts file",
    "credit-bench": "score a credit rule of one's own against the true credit of recorded trajectories",
    "rewards": "list every reward, what it takes and whether its files are here; fetch them (needs the network)",
    "verify": "re-hash runs, checkpoints and published files, make tables again from their rows, such as those of results/",
    "doctor": "check this environment, with the way out of what is wrong",
    "prompts": "fetch a published prompt list (needs the network) and check it",
    "serve-reward": "serve a reward over HTTP, for trainings that name it by its address",
}
"""Name → what it does. Each is a file of otca/commands."""


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m otca COMMAND [--help]\n")
        print("\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items()))
        print("\ntables: python -m reproduce.table1 --help")
        return 0
    if argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS)
        print(f"otca: error: unknown command {printable(argv[0])!r}{hint} (known: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    command = importlib.import_module(f"otca.commands.{argv[0].replace('-', '_')}")
    return run_command(f"otca {argv[0]}", lambda: command.run(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
