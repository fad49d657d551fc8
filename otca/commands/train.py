"""``python -m otca train``: one training run, and how every command that takes a run's settings resolves them."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse import ArgumentParser

from otca import presets
from otca.config import TrainConfig
from otca.errors import InputError
from otca.parser import SettingsFile, make_parser, parse

if TYPE_CHECKING:
    from otca.methods import Method

PRECEDENCE = "Precedence: defaults < --preset < method < --config < command line."


def parser() -> ArgumentParser:
    """Every field of `TrainConfig`, plus preset, method settings from YAML, and the run folder."""
    out = run_parser("train", f"Train a generator. {PRECEDENCE}")
    out.add_argument("--out", type=Path, default=None, help="run folder (default: runs/adhoc/<method>/seed<seed>)")
    out.add_argument(
        "--override-config", action="store_true", help="go on with a run whose config was another; overridden.jsonl notes it"
    )
    out.add_argument("--allow-trained-metric", action="store_true", help="train on what the preset's evaluation holds out")
    out.add_argument("--dry_run", type=bool, default=False, help="print the resolved settings and stop")
    return out


def run_parser(command: str, description: str) -> ArgumentParser:
    """What every command has that takes the settings of a run."""
    parser = make_parser(command, description)
    parser.add_argument("--config", action=SettingsFile, help="YAML file with the keys below")
    parser.add_argument("--preset", type=str, default="image/quick", help="modality/tier whose settings to start from")
    parser.add_class_arguments(TrainConfig)
    return parser


def resolve(options: ArgumentParser, argv: list[str]):
    """What a command line asks for: everything given, the config of the run, its method."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="image/quick")
    early.add_argument("--method", default="otca")
    chosen, _ = early.parse_known_args(argv)
    from baselines import find_method

    method = find_method(chosen.method)
    own = presets.tuned(chosen.preset, method.name) | method.settings | {"method": method.name, "preset": chosen.preset}
    options.set_defaults(presets.preset(chosen.preset) | own)
    given = parse(options, argv)
    if given.preset != chosen.preset:
        raise InputError(f"preset {given.preset!r} is set in the YAML file; name it on the command line: --preset {given.preset}")
    config = TrainConfig(**{name: given[name] for name in TrainConfig.__dataclass_fields__})
    if config.method != method.name:
        raise InputError(
            f"method {config.method!r} is set in the YAML file; name it on the command line: --method {config.method}"
        )
    return given, config, method


def run(argv: list[str]) -> None:
    """Train, or print the resolved settings."""
    given, config, method = resolve(parser(), argv)
    if not given.allow_trained_metric:
        from eval.held_out import held_out_names
        from otca.rewards.measured import check_trained_metrics

        check_trained_metrics(f"preset {given.preset}", config.rewards, given.preset, held_out_names(given.preset))
    if given.dry_run:
        print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), end="")
        return
    from otca.distributed import end_processes, is_main

    folder = given.out or Path("runs/adhoc") / config.method / f"seed{config.seed}"
    _train(config, method, folder, given.override_config)
    end_processes()
    if is_main():
        print(f"trained {config.method}, seed {config.seed}: {folder}")


def _train(config: TrainConfig, method: Method, folder: Path, override_config: bool) -> None:
    """Train into ``folder`` and show how far it is."""
    from tqdm import tqdm

    from otca.checkpoint import checkpoints, iteration_of
    from otca.files import run_lock
    from otca.runs import begin_run
    from otca.trainer import Trainer

    trainer = Trainer(config, method, folder)
    main = trainer.accelerator.is_main_process
    with run_lock(folder) if main else nullcontext():
        if main:
            reached = checkpoints(folder)
            begin_run(folder, config, override_config, iteration_of(reached[-1]) if reached else 0)
        trainer.accelerator.wait_for_everyone()
        with tqdm(total=config.iterations, unit="iteration", disable=not main) as bar:

            def show(row):
                bar.n = row["iteration"] + 1
                bar.set_postfix_str(" ".join(f"{n} {row[f'reward_{n}']:.3f}" for n in (r.name for r in trainer.rewards)))

            trainer.run(show)
