"""What `otca export` writes of a run's checkpoint: weights, samples, settings, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from eval.generate import generate, noise_seed
from eval.model_card import SAMPLES, STEPS, Exported, licence_text, model_card
from eval.plots import contact_sheet, sample_grid
from eval.published_row import RESULTS
from eval.store import run_values
from otca.checkpoint import load_weights
from otca.config import EvalConfig, TrainConfig
from otca.distributed import process_state
from otca.export import export_weights
from otca.models.base import Policy, build_policy
from otca.runs import OVERRIDDEN, config_of, is_finished, read_manifest


def write_export(run: Path, checkpoint: Path, weights: str, samples: int, results: Path | None, folder: Path) -> None:
    """Write everything but the hashes into an empty folder; ``weights`` as ``eval.weights``, ``samples`` in the grid."""
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


def _draw_samples(policy: Policy, settings: TrainConfig, count: int, folder: Path) -> tuple[list[str], int]:
    """Write a grid of samples of the run's validation prompts; returns these, and the seed of the first one's noise."""
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
