"""Run folders made by hand in milliseconds: rows of a pretended training and evaluation, sealed as real ones are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from eval.evaluate import write_rows
from eval.video_writers import write_webp
from otca import presets
from otca.runs import RunSpec, begin_run, finish_run

SKILLS = ("colors", "counting")
REWARDS = {"image": ("alignment", "quality", "aesthetic"), "video": ("vq", "mq", "ta")}
ITERATIONS, EVERY, SAMPLES = 4, 2, 6


def make_run(
    root: Path,
    method: str,
    seed: int,
    accuracy: float = 0.5,
    modality: str = "image",
    tier: str = "quick",
    protocol: dict | None = None,
    **settings: object,
) -> Path:
    """A finished run of so high an accuracy at the end (at the start .3), whose rewards rise with it; its folder."""
    name, _, variant = method.partition("@")
    arm = RunSpec(modality, tier, name, seed, variant)
    folder, rng, names = root / arm.path, np.random.default_rng([seed, sum(map(ord, method))]), REWARDS[modality]
    changes = {"prompts_per_iteration": 2, "group_size": SAMPLES // 2, "iterations": ITERATIONS, "rewards": list(names)}
    config = presets.train_config(f"{modality}/{tier}", name, changes | settings, seed)
    begin_run(folder, config)
    values = {n: rng.uniform(0.3, 0.4, ITERATIONS) + accuracy / 4 for n in names}
    if method != "base":
        steps = np.arange(1, ITERATIONS + 1)
        train = pd.DataFrame({"iteration": steps - 1} | {f"reward_{n}": v for n, v in values.items()})
        for t in range(2):
            train = train.assign(**{f"credit_step_{t}_{n}": (1.0 + t) for n in names})
        write_rows(train.assign(network_evaluations=100 * steps, reward_calls=18 * steps), folder / "train.csv")
        write_rows(pd.DataFrame({"iteration": steps - 1, "total": 1.5}), folder / "timing.csv")
        reached = np.arange(0, ITERATIONS + 1, EVERY)
        found = pd.DataFrame({"iteration": reached, "mean_accuracy": np.linspace(0.3, accuracy, len(reached))})
        write_rows(found.assign(**{f"mean_{n}": np.linspace(0.4, 0.6, len(reached)) for n in names}), folder / "validation.csv")
        write_rows(pd.DataFrame({"prompt_id": ["p0"], "step": [0], "objective": ["all"], "credit": [1.0]}), folder / "probe.csv")
    right = [i < round(10 * accuracy) for i in range(10)]
    items = pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(10)],
            "sample": 0,
            "skill": [SKILLS[i % 2] for i in range(10)],
            "text": [f"prompt <{i}>" for i in range(10)],
            "judge_correct": [int(r) for r in right],
        }
    )
    items["verifier_correct"] = [1 if r else int(i == 9) for i, r in enumerate(right)]
    write_rows(items.assign(**{n: v[-1] + rng.normal(0, 0.05, 10) for n, v in values.items()}), folder / "scores.csv.gz")
    write_rows(pd.DataFrame({"metric": ["diversity"], "value": [0.4 + 0.01 * seed], "n": [10]}), folder / "sets.csv")
    (folder / "cost.json").write_text(json.dumps({"train_seconds": 6.0, "evaluate_seconds": 1.0, "hardware": "a machine"}))
    if seed == 0:
        _media(folder / "media", items, modality, rng)
    budget = {"network_evaluations": 100 * ITERATIONS, "reward_calls": 18 * ITERATIONS} if method != "base" else {}
    finish_run(
        folder,
        arm,
        dataclasses.asdict(config),
        {"network_evaluations": 0, "reward_calls": 0} | budget,
        {"task": f"otca-{modality}-v2", "steps": 6} | (protocol or {}),
    )
    return folder


def _media(folder: Path, items: pd.DataFrame, modality: str, rng: np.random.Generator) -> None:
    """Samples of noise for every prompt and their index."""
    folder.mkdir()
    lines = []
    for row in items.itertuples():
        file = f"{row.prompt_id}_0.{'png' if modality == 'image' else 'webp'}"
        if modality == "image":
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / file)
        else:
            write_webp(folder / file, torch.from_numpy(rng.random((3, 3, 16, 16))).float(), 8.0)
        lines.append(json.dumps({"file": file, "id": row.prompt_id, "prompt": row.text, "spec": {"skill": row.skill}}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
