"""``python -m otca export``: a run's checkpoint as a folder that is ready for the hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from otca.bounds import at_least, check_bound
from otca.errors import InputError
from otca.parser import make_parser, parse

if TYPE_CHECKING:
    import numpy as np

    from eval.model_card import Sampling
    from otca.config import TrainConfig


def parser() -> ArgumentParser:
    """What to export, and where to."""
    out = make_parser(
        "export", "Write a folder for the hub: weights as diffusers reads them, model card, config, samples, hashes."
    )
    out.add_argument("run_folder", type=Path, metavar="RUN", help="run folder with a checkpoint")
    out.add_argument("folder", type=Path, metavar="DIR", help="folder to write; must be new or empty")
    out.add_argument("--checkpoint", type=str, default="last", help="which of the run's: last, best (in validation) or a number")
    out.add_argument("--weights", choices=("auto", "average", "raw"), default="auto", help="as eval.weights (default: auto)")
    out.add_argument("--samples", type=int, default=6, help="prompts in the sample grid, where the run has no media; 0: no grid")
    out.add_argument("--results", type=Path, default=None, help="folder of published tables (default: the repository's own)")
    return out


def run(argv: list[str]) -> None:
    """Export, aside at first: the folder is whole or is not there."""
    given = parse(parser(), argv)
    source, folder = given.run_folder, given.folder
    check_bound("samples", given.samples, at_least(0))
    if given.results is not None and not given.results.is_dir():
        raise InputError(f"--results {given.results} is no folder; give one of published tables, or leave it out")
    if folder.resolve() != source.resolve() and folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{folder} lies in the run {source}; name a folder outside of it, so that the run stays as it is")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; name a folder that is new or empty")
    from otca.files import PARTIAL, flush_tree, writable_folder, write_hashes
    from otca.runs import integrity_errors, is_finished
    from otca.validation import chosen_checkpoint

    checkpoint = chosen_checkpoint(source, given.checkpoint)
    broken = integrity_errors(source) if is_finished(source) else []
    if broken:
        raise InputError(f"run {source} is damaged: {broken[0]}; restore it before it is exported")
    target = folder.resolve()
    aside = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(source, checkpoint, given.weights, given.samples, given.results, writable_folder(aside))
        write_hashes(aside)
        flush_tree(aside)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"exported {checkpoint} to {folder}; look through README.md and config.yaml before you publish it")


def _write(source: Path, checkpoint: Path, weights: str, samples: int, results: Path | None, folder: Path) -> None:
    """Everything but the hashes."""
    from eval.model_card import REPOSITORY, Exported, licence, model_card
    from eval.published_row import RESULTS
    from eval.store import run_values
    from otca.export import export_weights
    from otca.runs import OVERRIDDEN, config_of

    settings, progress = config_of(source), json.loads((checkpoint / "state.json").read_text())
    layout = export_weights(checkpoint, settings.policy, folder, weights)
    manifest = _evaluation_of(source, settings, progress, layout.averaged)
    if manifest is not None and (source / "media" / "prompts.jsonl").is_file():
        sampling = _shown(source, settings, manifest, folder)
    else:
        sampling = _sampled(checkpoint, settings, samples, folder, weights)
    values = run_values(source) if manifest is not None else None
    for name in ("config.yaml", OVERRIDDEN):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    changed = (folder / OVERRIDDEN).is_file()
    exported = Exported(settings, progress, layout, sampling, manifest, values, changed, results or RESULTS)
    (folder / "README.md").write_text(model_card(exported), encoding="utf-8")
    own = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    (folder / "LICENSE").write_text(own if exported.embedded else licence(exported) + "\n", encoding="utf-8")


def _evaluation_of(source: Path, settings: TrainConfig, progress: Mapping, averaged: bool) -> dict | None:
    """The run's manifest, where its scores and media are of these weights: those of the last iteration, averaged or not."""
    from otca.runs import is_finished, read_manifest

    if not is_finished(source) or progress["iteration"] != settings.iterations:
        return None
    manifest = read_manifest(source)
    return manifest if (manifest["protocol"].get("weights") == "average") == averaged else None


def _shown(source: Path, settings: TrainConfig, manifest: Mapping, folder: Path) -> Sampling:
    """A grid of what the run's evaluation has made; returns how that was sampled."""
    from eval.generate import noise_seed
    from eval.plots import still
    from eval.store import gallery_prompts
    from otca.config import EvalConfig
    from otca.presets import EVAL, eval_config
    from otca.types import Prompt

    rows, protocol = gallery_prompts(source), manifest["protocol"]
    texts = [row["prompt"] for row in rows]
    _draw([still(source / "media" / row["file"]) for row in rows], texts, settings, folder)
    lines = (source / "media" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    slot = [json.loads(line)["file"] for line in lines].index(rows[0]["file"]) // protocol["samples_per_prompt"]
    seed = noise_seed(Prompt(rows[0]["id"], texts[0]), slot, protocol["noise_seed"])
    tier = f"{manifest['modality']}/{manifest['tier']}"
    return _sampling(
        settings,
        protocol["policy"],
        prompts=tuple(texts),
        seed=seed,
        steps=protocol["steps"],
        shift=protocol["shift"],
        height=protocol.get("height") or settings.policy.height,
        width=protocol.get("width") or settings.policy.width,
        fps=(eval_config(tier) if tier in EVAL else EvalConfig()).fps,
    )


def _sampled(checkpoint: Path, settings: TrainConfig, count: int, folder: Path, weights: str) -> Sampling:
    """A grid of samples drawn now, of validation prompts with noise of the run's seed; returns how."""
    from eval.generate import generate, noise_seed
    from eval.plots import contact_sheet
    from otca.checkpoint import load_weights
    from otca.config import EvalConfig
    from otca.distributed import process_state
    from otca.models.base import build_policy

    each = {"samples_per_prompt": 1, "shift": settings.sampler.shift, "batch": 1}
    config = EvalConfig(source=_validation_of(settings), prompts=max(count, 1), **each)
    shift, protocol, texts, seed = config.shift, {}, [], 0
    if count:
        policy = build_policy(settings.policy, process_state().device)
        load_weights(checkpoint, policy, weights)
        media_BFCHW, prompts = generate(policy, config, settings.seed)
        media_BFHWC = (media_BFCHW * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        texts = [prompt.text for prompt in prompts]
        _draw([clip[0] if len(clip) == 1 else contact_sheet(clip) for clip in media_BFHWC], texts, settings, folder)
        seed = noise_seed(prompts[0], 0, settings.seed)
        shift, protocol = shift or policy.shift, policy.protocol
    return _sampling(
        settings,
        protocol,
        prompts=tuple(texts),
        seed=seed,
        steps=config.steps,
        shift=shift,
        height=settings.policy.height,
        width=settings.policy.width,
        fps=config.fps,
    )


def _validation_of(settings: TrainConfig) -> str:
    """Prompts to sample: those that the run validates on, the validation split of an embedded list, or its training prompts."""
    if settings.validation.every:
        return settings.validation.source
    head, _, split = settings.prompts.partition("/")
    return f"{head}/validation" if head.startswith("embedded:") and split else settings.prompts


def _draw(pictures: list[np.ndarray], prompts: list[str], settings: TrainConfig, folder: Path) -> None:
    from eval.model_card import SAMPLES
    from eval.plots import sample_grid

    sample_grid([[picture] for picture in pictures], prompts, [settings.method], folder / SAMPLES)


def _sampling(settings: TrainConfig, protocol: Mapping, **drawn) -> Sampling:
    """How samples were drawn; what the policy's protocol leaves open is as settings and checkpoint say."""
    from eval.model_card import Sampling
    from otca.files import model_notes, resolve_model

    policy = settings.policy
    notes = model_notes(resolve_model(policy.path))
    whole = protocol.get("true_guidance") or policy.true_guidance or notes.get("true_guidance", 1.0)
    low_noise = policy.true_guidance_2 or notes.get("true_guidance_2", whole)
    return Sampling(
        **drawn,
        frames=policy.frames or notes.get("frames", 0),
        true_guidance=tuple(whole) if isinstance(whole, list) else (whole, low_noise),
        guidance=protocol.get("guidance", policy.guidance),
        max_sequence_length=protocol.get("max_sequence_length") or policy.max_sequence_length or notes.get("max_sequence_length"),
    )
