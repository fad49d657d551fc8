"""`otca export`: a run's checkpoint as a folder for the hub. What takes long to load is imported after the checks."""

from __future__ import annotations

from pathlib import Path

from otca.bounds import at_least, check_bound
from otca.errors import InputError
from otca.parser import make_parser, parse


def run(argv: list[str]) -> None:
    """Write a folder for the hub, aside at first: it is whole or is not there."""
    said = "Write a folder for the hub: weights as diffusers reads them, model card, config, samples, hashes."
    options = make_parser("export", said)
    add = options.add_argument
    add("run_folder", type=Path, metavar="RUN", help="run folder with a checkpoint")
    add("folder", type=Path, metavar="DIR", help="folder to write; must be new or empty")
    add("--checkpoint", type=str, default="last", help="which of the run's: last, best (in validation) or a number")
    add("--weights", choices=("auto", "average", "raw"), default="auto", help="as eval.weights (default: auto)")
    add("--samples", type=int, default=6, help="prompts in the sample grid; 0: no grid")
    add("--results", type=Path, default=None, help="folder of published tables (default: the repository's own)")
    given = parse(options, argv)
    source, folder = given.run_folder, given.folder
    check_bound("samples", given.samples, at_least(0))
    if given.results is not None and not given.results.is_dir():
        raise InputError(f"--results {given.results} is no folder; give one of published tables, or leave it out")
    if folder.resolve() != source.resolve() and folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{folder} lies in the run {source}; name a folder outside of it, so that the run stays as it is")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; name a folder that is new or empty")
    from eval.model_card import RESULTS, write_export
    from otca.files import folder_aside
    from otca.runs import integrity_errors, is_finished
    from otca.validation import chosen_checkpoint

    checkpoint = chosen_checkpoint(source, given.checkpoint)
    broken = integrity_errors(source) if is_finished(source) else []
    if broken:
        raise InputError(f"run {source} is damaged: {broken[0]}; restore it before it is exported")
    with folder_aside(folder.resolve()) as aside:
        write_export(source, checkpoint, given.weights, given.samples, given.results or RESULTS, aside)
    print(f"exported {checkpoint} to {folder}; look through README.md and config.yaml before you publish it")
