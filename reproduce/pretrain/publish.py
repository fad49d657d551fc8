"""Put pre-trained checkpoints into the package: files, SHA-256, what they cost and what they can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from eval.generate import generate
from eval.held_out import MEDIA
from otca.config import PolicyConfig
from otca.eval_config import EvalConfig
from otca.files import EMBEDDED, write_atomic, write_hashes
from otca.models.base import build_policy

SAMPLES = 600
"""Validation prompts, one sample each, behind each accuracy."""


def publish(
    folder: Path, modality: str, models: dict[str, str], notes: dict, stages: list[str], accuracies: dict[str, tuple[str, float]]
) -> None:
    """Copy ``folder/<source>`` to the package's checkpoint <name> (``models``: source → name), each with its hashes.

    `pretrain-<modality>.json` records steps and seconds of each stage, and the held-out accuracy on the validation split of
    pipelines with some guidance (``accuracies``: label → folder below ``folder``, guidance scale).
    """
    write_atomic(folder / "pipeline" / "otca.json", json.dumps(notes) + "\n")
    for source, name in models.items():
        target = EMBEDDED / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / source, target)
        write_hashes(target)
        print(f"published {target} ({sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.2f} MB)")
    states = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in stages}
    record = {name: {"steps": state["done"], "seconds": round(state["elapsed"])} for name, state in states.items()}
    record["accuracy"] = {
        label: accuracy(modality, folder / pipeline, guidance, notes) for label, (pipeline, guidance) in accuracies.items()
    }
    write_atomic(EMBEDDED / f"pretrain-{modality}.json", json.dumps(record, indent=1) + "\n")


def accuracy(modality: str, pipeline: Path, guidance: float, notes: dict) -> float:
    """Held-out accuracy of a pipeline folder on validation prompts."""
    config = EvalConfig(source=f"embedded:{modality}/validation", prompts=SAMPLES, samples_per_prompt=1)
    policy = build_policy(PolicyConfig(path=str(pipeline), true_guidance=guidance, **notes))
    media, wanted = generate(policy, config, seed=0)
    return round(MEDIA[modality]().judge.score(media, wanted).mean().item(), 4)
