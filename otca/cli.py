"""Command line: ``otca COMMAND`` or ``python -m otca COMMAND``. Errors of the user end with one line and exit code 2.

What a command needs is imported when it runs, so that help and refusals come at once, and a judge's server needs few packages.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from otca.bounds import at_least, check_bound
from otca.config import EvalConfig, PolicyConfig, TrainConfig
from otca.errors import InputError, nearest, printable
from otca.parser import SettingsFile, make_parser, parse
from otca.signals import run_command

PRECEDENCE = "Precedence: defaults < --preset < method < --config < command line."
REWARD_FILES = {"type": str, "default": "", "help": "folder of published rewards' files, FOLDER/<reward>/<file>"}
TRUTH = Path("results/credit_fidelity")


def train(argv: list[str]) -> None:
    """Train a generator with a method."""
    given, config, method = resolve(train_parser(), argv)
    if not given.allow_trained_metric:
        from eval.held_out import held_out_names
        from otca.rewards.base import check_trained_metrics

        check_trained_metrics(f"preset {given.preset}", config.rewards, given.preset, held_out_names(given.preset))
    if given.dry_run:
        print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), end="")
        return
    from otca.distributed import end_processes, is_main
    from otca.runs import changed_settings
    from otca.trainer import train_in

    folder = given.out or Path("runs/adhoc") / config.method / f"seed{config.seed}"
    changed_settings(folder, config, given.override_config)  # before minutes of loading
    train_in(folder, config, method, given.override_config)
    end_processes()
    if is_main():
        print(f"trained {config.method}, seed {config.seed}: {folder}")


def train_parser() -> ArgumentParser:
    """Every field of `TrainConfig`, plus preset, method settings from YAML, and the run folder."""
    options = run_parser("train", f"Train a generator. {PRECEDENCE}")
    add = options.add_argument
    add("--out", type=Path, default=None, help="run folder (default: runs/adhoc/<method>/seed<seed>)")
    add("--override-config", action="store_true", help="go on with a run whose config was another; overridden.jsonl notes it")
    add("--allow-trained-metric", action="store_true", help="train on what the preset's evaluation holds out")
    add("--dry_run", type=bool, default=False, help="print the resolved settings and stop")
    return options


def run_parser(command: str, description: str) -> ArgumentParser:
    """What every command has that takes the settings of a run."""
    options = make_parser(command, description)
    options.add_argument("--config", action=SettingsFile, help="YAML file with the keys below")
    options.add_argument("--preset", type=str, default="image/quick", help="modality/tier whose settings to start from")
    options.add_class_arguments(TrainConfig)
    return options


def resolve(options: ArgumentParser, argv: list[str]):
    """What a command line asks for: everything given, the config of the run, its method."""
    from baselines import find_method
    from otca import presets

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="image/quick")
    early.add_argument("--method", default=TrainConfig.method)
    chosen = vars(early.parse_known_args(argv)[0])
    method = find_method(chosen["method"])
    own = method.settings | presets.tuned(chosen["preset"], method.name) | chosen
    options.set_defaults(presets.preset(chosen["preset"]) | own)
    given = parse(options, argv)
    for name, value in chosen.items():
        if given[name] != value:
            said = f"{name} {given[name]!r} is set in the YAML file; name it on the command line"
            raise InputError(f"{said}: --{name} {given[name]}")
    return given, TrainConfig(**{name: given[name] for name in TrainConfig.__dataclass_fields__}), method


def plan(argv: list[str]) -> None:
    """What a run needs before it is launched: memory a GPU by part, evaluations, FLOPs, hours."""
    from baselines import find_method
    from otca.plan import GPUS, SHARDINGS, UTILISATION, describe, describe_recipes

    gpus = ", ".join(f"{name} ({memory} GB, {tflops} TFLOP/s)" for name, (memory, tflops) in GPUS.items())
    options = run_parser("plan", f"What a run needs before it is launched; nothing is downloaded or trained. {PRECEDENCE}")
    add = options.add_argument
    add("--processes", type=int, default=1, help="processes, one a GPU")
    add("--sharding", type=str, default="none", help=f"how weights are spread: {' or '.join(SHARDINGS)}")
    add("--gpu", type=str, default="h100", help=f"GPU: {gpus}")
    add("--utilisation", type=float, default=UTILISATION, help="share of the GPU's TFLOP/s that is reached (assumed)")
    add("--recipes", action="store_true", help="what every recipe at scale needs, with its commands, and stop")
    given, config, method = resolve(options, argv)
    if given.recipes:
        print(describe_recipes(find_method), end="")
        return
    print(describe(config, method, given.gpu, given.utilisation, given.processes, given.sharding), end="")


def sample(argv: list[str]) -> None:
    """Generate media of a run or the base model: <prompt id>_<sample>.png (videos: .webp), and prompts.jsonl for `score`."""
    options = make_parser("sample", sample.__doc__)
    add = options.add_argument
    add("--run", type=Path, default=None, help="run folder: one of its checkpoints is used (default: the base model)")
    add("--checkpoint", type=str, default="last", help="which of the run's: last, best (in validation) or a number")
    add("--out", type=Path, required=True, help="folder for the media")
    add("--seed", type=int, default=0, help="noise seed")
    add("--device", type=str, default="", help="where it runs: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    options.add_class_arguments(EvalConfig, "eval")
    options.add_class_arguments(PolicyConfig, "policy")
    given = parse(options, argv)
    from eval.generate import generate
    from otca.checkpoint import load_weights
    from otca.distributed import usable_device
    from otca.files import writable_folder
    from otca.models.base import build_policy
    from otca.runs import config_of
    from otca.validation import chosen_checkpoint

    folder, device = writable_folder(given.out), usable_device(given.device)
    chosen = chosen_checkpoint(given.run, given.checkpoint) if given.run else None
    policy = build_policy(config_of(given.run).policy if given.run else given.policy, device)
    if chosen:
        load_weights(chosen, policy, given.eval.weights)
    media, _ = generate(policy, given.eval, given.seed, folder)
    print(f"wrote {len(media)} media: {folder}")


def export(argv: list[str]) -> None:
    """Write a folder for the hub from a run: weights as diffusers reads them, model card, samples."""
    from eval.export import run

    run(argv)


def score(argv: list[str]) -> None:
    """Score images or videos of any system against a prompts file: a row an item, means with intervals; resumes."""
    from eval import score as scoring
    from eval.score import ScoreConfig

    options = make_parser("score", score.__doc__)
    options.add_class_arguments(ScoreConfig)
    given = parse(options, argv)
    scoring.score(ScoreConfig(**{name: given[name] for name in ScoreConfig.__dataclass_fields__}))


def credit_bench(argv: list[str]) -> None:
    """Score credit(latents_SBD, reward_BK, group_B) of a Python file, which is run, against the true credit of trajectories."""
    from eval.evaluate import write_rows
    from eval.markup import number, show
    from eval.truth_set import read_rule, score

    options = make_parser("credit-bench", credit_bench.__doc__)
    add = options.add_argument
    add("rule", type=Path, help="Python file with the function")
    add("--modality", type=str, default="image", help="whose truth set: image or video")
    add("--truth", type=Path, default=None, help=f"truth set (default: {TRUTH}/truth-MODALITY.safetensors)")
    add("--out", type=Path, default=None, help="CSV for the scores with their intervals")
    given = parse(options, argv)
    rows = score(read_rule(given.rule), given.truth or TRUTH / f"truth-{given.modality}.safetensors")
    if given.out:
        write_rows(rows, given.out)
    shown = [name for name in rows if not name.endswith(("_low", "_high"))]
    show(str(given.rule), {n.replace("_", " "): [number(v, 3) if isinstance(v, float) else v for v in rows[n]] for n in shown})
    for r in rows.itertuples():
        print(f"{r.objective}: pooled correlation {r.pooled:.3f}, 95 % CI {r.pooled_low:.3f} to {r.pooled_high:.3f}")


def rewards(argv: list[str]) -> None:
    """List every reward: what it measures, range, licence, memory, whether its files are here; fetch them (needs the network)."""
    options = make_parser("rewards", rewards.__doc__)
    fetched = "download this reward's files into the hub's cache, and check their hashes"
    options.add_argument("--fetch", type=str | None, default=None, help=fetched)
    options.add_argument("--reward_files", **REWARD_FILES)
    given = parse(options, argv)
    from otca.rewards.base import REGISTRY, find_reward
    from otca.rewards.published import PublishedReward, described, fetch

    if given.fetch is None:
        print("\n\n".join(described(name, find_reward(name), given.reward_files) for name in REGISTRY))
        return
    reward_class = find_reward(given.fetch)
    if not issubclass(reward_class, PublishedReward) or not reward_class.card.files:
        raise InputError(f"reward {given.fetch!r} has no files to fetch; `python -m otca rewards` names those that have")
    for file, path in zip(reward_class.card.files, fetch(reward_class.card).values()):
        print(f"{file.name}: {path} ({'as published' if file.sha256 else 'no hash on record'})")


def prompts(argv: list[str]) -> None:
    """Fetch a published prompt list at its pinned commit (this needs the network) and check it."""
    from otca.prompts import LISTS, fetch_list, load_prompts

    options = make_parser("prompts", prompts.__doc__)
    listed = "; ".join(f"{name}: {one.what}" for name, one in LISTS.items())
    options.add_argument("--list", type=str, required=True, help=listed)
    options.add_argument("--out", type=Path, default=Path("prompts"), help="folder to write to (default: prompts)")
    given = parse(options, argv)
    path = fetch_list(given.list, given.out)
    first, *others = load_prompts(str(path))
    print(f"{path}: {len(others) + 1:,} prompts, checked; the first: {printable(first.text[:100])}")


def serve_reward(argv: list[str]) -> None:
    """Serve a reward over HTTP, for trainings that name it by its address."""
    from otca.rewards.wire import TOKEN, bearer_token

    options = make_parser("serve-reward", f"Serve a reward over HTTP; the bearer token is read from {TOKEN}.")
    add = options.add_argument
    add("name", type=str, help="reward, by name or as module:class")
    add("--host", type=str, default="127.0.0.1", help="address to listen on; others than this need a token")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    add("--max_body_mb", type=int, default=256, help="largest request body, in MB")
    add("--device", type=str, default="cpu", help="where the reward's network lives, as cuda:0")
    add("--reward_files", **REWARD_FILES)
    add("--reward_timeout", type=float, default=TrainConfig.reward_timeout, help="seconds a call may take; 0 is no limit")
    add("--reward_fps", type=float, default=0.0, help="frames a second of videos that state none; 0 is the reward's own")
    add("--batch", type=int, default=16, help="samples that are scored in one call")
    given = parse(options, argv)
    for name, least in (("max_body_mb", 1), ("batch", 1), ("reward_timeout", 0), ("reward_fps", 0)):
        check_bound(name, given[name], at_least(least))
    from otca.distributed import usable_device
    from otca.rewards.base import build_reward
    from otca.serving import bound, make_app, serve

    token = bearer_token()
    with bound(given.host, given.port, token) as listener:  # before minutes of loading
        where = (usable_device(given.device), given.reward_files)
        reward = build_reward(given.name, *where, given.reward_timeout, given.reward_fps)
        app = make_app(reward, token, given.max_body_mb * 1_000_000, given.batch)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/{reward.name}"
        print(f"serving {reward.name} at {address}", flush=True)
        serve(app, listener)


def verify(argv: list[str]) -> None:
    """Re-hash every finished run (rows, settings) and every checkpoint (weights) below a folder."""
    options = make_parser("verify", verify.__doc__)
    options.add_argument("folder", type=Path, help="a run, a checkpoint, or any folder of them")
    from otca.doctor import check_integrity

    folder = parse(options, argv).folder
    found, compared = check_integrity(folder)
    print("\n".join([*map(printable, found), f"compared {compared}: {folder}"]))
    if found:
        raise InputError(f"{len(found)} damaged in {folder}; restore these files or make the runs again")


def doctor(argv: list[str]) -> None:
    """Check packages, GPUs, disk, caches, shipped checkpoints and rewards' files, with the way out of what is wrong."""
    options = make_parser("doctor", doctor.__doc__)
    options.add_argument("--reward_files", **REWARD_FILES)
    given = parse(options, argv)
    from otca.doctor import findings

    failed = 0
    for well, what, way_out in findings(given.reward_files):
        failed += not well
        print(f"ok    {what}" if well else f"FAIL  {what}\n      {way_out}")
    if failed:
        raise InputError(f"{failed} checks failed; the line below each says what to do")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__.replace("_", "-"): command
    for command in (train, plan, sample, export, score, credit_bench, rewards, verify, doctor, prompts, serve_reward)
}
"""Each one's docstring is its line in the help; it raises InputError for what the user can mend."""


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m otca COMMAND [--help]\n")
        print("\n".join(f"  {name:12} {command.__doc__}" for name, command in COMMANDS.items()))
        print("\ntables: python -m reproduce.table1 --help")
        return 0
    if argv[0] not in COMMANDS:
        said = f"unknown command {printable(argv[0])!r}{nearest(argv[0], COMMANDS)} (known: {', '.join(COMMANDS)})"
        print(f"otca: error: {said}", file=sys.stderr)
        return 2
    return run_command(f"otca {argv[0]}", lambda: COMMANDS[argv[0]](argv[1:]))
