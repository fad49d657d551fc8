"""`otca export`: a run's checkpoint as a folder for the hub. What takes long to load is imported after the checks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from otca.bounds import at_least, check_bound
from otca.config import EvalConfig, TrainConfig
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
    from otca.files import folder_aside
    from otca.runs import integrity_errors, is_finished
    from otca.validation import chosen_checkpoint

    checkpoint = chosen_checkpoint(source, given.checkpoint)
    broken = integrity_errors(source) if is_finished(source) else []
    if broken:
        raise InputError(f"run {source} is damaged: {broken[0]}; restore it before it is exported")
    with folder_aside(folder.resolve()) as aside:
        _write(source, checkpoint, given.weights, given.samples, given.results, aside)
    print(f"exported {checkpoint} to {folder}; look through README.md and config.yaml before you publish it")


def _write(run: Path, checkpoint: Path, weights: str, samples: int, results: Path | None, folder: Path) -> None:
    """Write everything but the hashes into an empty folder; ``weights`` as ``eval.weights``, ``samples`` in the grid."""
    from eval.model_card import RESULTS, Exported, licence_text, model_card
    from eval.store import run_values
    from otca.checkpoint import load_weights
    from otca.distributed import process_state
    from otca.export import export_weights
    from otca.models.base import build_policy
    from otca.runs import OVERRIDDEN, config_of, is_finished, read_manifest

    settings, progress = config_of(run), json.loads((checkpoint / "state.json").read_text())
    policy = build_policy(settings.policy, process_state().device)
    averaged = load_weights(checkpoint, policy, weights)
    prompts, seed = _draw_samples(policy, settings, samples, folder)
    lora, whole = export_weights(policy, folder)
    manifest = read_manifest(run) if is_finished(run) and progress["iteration"] == settings.iterations else None
    if manifest is not None and (manifest["protocol"].get("weights") == "average") != averaged:
        manifest = None  # its scores are of other weights
    for name in ("config.yaml", OVERRIDDEN):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    exported = Exported(
        settings=settings,
        progress=progress,
        policy=policy,
        lora=lora,
        whole=whole,
        prompts=prompts,
        seed=seed,
        manifest=manifest,
        values=run_values(run) if manifest is not None else {},
        changed=(folder / OVERRIDDEN).is_file(),
        results=results or RESULTS,
    )
    (folder / "README.md").write_text(model_card(exported), encoding="utf-8")
    (folder / "LICENSE").write_text(licence_text(exported), encoding="utf-8")


def _draw_samples(policy, settings: TrainConfig, count: int, folder: Path) -> tuple[list[str], int]:
    """Write a grid of samples of the run's validation prompts; returns these, and the seed of the first one's noise."""
    from eval.generate import generate, noise_seed
    from eval.model_card import SAMPLES, STEPS
    from eval.plots import contact_sheet, sample_grid

    if not count:
        return [], 0
    source, shift = settings.prompts, settings.sampler.shift
    if settings.validation.every:
        source = settings.validation.source
    elif source.startswith("embedded:"):
        source = f"{source.partition('/')[0]}/validation"
    config = EvalConfig(source=source, prompts=count, samples_per_prompt=1, steps=STEPS, shift=shift, batch=1)
    media_BFCHW, prompts = generate(policy, config, settings.seed)
    media_BFHWC = (media_BFCHW * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    pictures = [[clip[0] if len(clip) == 1 else contact_sheet(clip)] for clip in media_BFHWC]
    texts = [prompt.text for prompt in prompts]
    sample_grid(pictures, texts, [settings.method], folder / SAMPLES)
    return texts, noise_seed(prompts[0], 0, settings.seed)
