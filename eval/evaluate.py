"""Judge media: one row an item (rewards, verdict, CLIP score) and one row a set (distances, diversity)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eval.generate import generate, quantise
from eval.metrics.alignment import ClipScore, JudgeAccuracy, embedded_clip
from eval.metrics.quality import FRECHET_SAMPLES, diversity, frechet_distance, kernel_distance
from otca.config import EvalConfig
from otca.embedded.scenes import LATTICE, draw_scene, render
from otca.files import write_atomic
from otca.policies.base import Policy
from otca.rewards.base import Reward, score_all
from otca.types import Prompt


def score_items(
    media_BFCHW: torch.Tensor, prompts: list[Prompt], scorers: list[Reward], samples_per_prompt: int = 1
) -> pd.DataFrame:
    """One row an item: prompt_id, sample, skill, text, then one column a scorer."""
    scores = score_all(scorers, media_BFCHW, prompts)
    rows = pd.DataFrame(
        {
            "prompt_id": [p.id for p in prompts],
            "sample": [i % samples_per_prompt for i in range(len(prompts))],
            "skill": [(p.spec or {}).get("skill", "") for p in prompts],
            "text": [p.text for p in prompts],
        }
    )
    for name, column in zip(scores.names, scores.reward_BK.T.tolist()):
        rows[name] = column
    return rows


def score_set(media_BFCHW: torch.Tensor, prompts: list[Prompt], clip, samples_per_prompt: int) -> pd.DataFrame:
    """Columns metric, value, n: kernel and (from 2,000 items on) Fréchet distance to renders of the same specs, diversity."""
    features = clip.image_features(media_BFCHW)
    reference = clip.image_features(reference_renders(prompts))
    values = {"kernel_distance": kernel_distance(features, reference)}
    if len(features) >= FRECHET_SAMPLES:
        values["frechet_distance"] = frechet_distance(features, reference)
    if samples_per_prompt > 1:
        values["diversity"] = diversity(features, samples_per_prompt)
    return pd.DataFrame({"metric": list(values), "value": list(values.values()), "n": len(features)})


def reference_renders(prompts: list[Prompt]) -> torch.Tensor:
    """One render a prompt, laid out as in the generator's training data: (B, 1, 3, H, W), rounded to 8 bits, always the same."""
    rng = np.random.default_rng(20260423)
    return quantise(torch.from_numpy(np.stack([render(draw_scene(p.spec, rng, LATTICE)) for p in prompts])).unsqueeze(1))


def evaluate(policy: Policy, config: EvalConfig, seed: int, rewards: list[Reward], folder: Path) -> dict:
    """Generate, score and write ``media/``, ``scores.csv.gz`` and ``sets.csv`` into the folder; returns the protocol."""
    media_BFCHW, prompts = generate(policy, config, seed, folder / "media")
    clip = embedded_clip()
    scorers = [*rewards, JudgeAccuracy(), ClipScore(clip)]
    items = score_items(media_BFCHW, prompts, scorers, config.samples_per_prompt)
    write_rows(items, folder / "scores.csv.gz")
    write_rows(score_set(media_BFCHW, prompts, clip, config.samples_per_prompt), folder / "sets.csv")
    return {
        "sampler": "ode",
        "steps": config.steps,
        "shift": config.shift,
        "prompts": config.source,
        "prompt_count": config.prompts,
        "samples_per_prompt": config.samples_per_prompt,
        "noise_seed": seed,
    } | {s.name: getattr(s, "protocol", {"source": getattr(s, "source", "")}) for s in scorers}


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """CSV with six significant digits, gzipped (without a time stamp) where the name says so; written atomically."""
    buffer = io.BytesIO()
    compression = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    rows.to_csv(buffer, index=False, float_format="%.6g", lineterminator="\n", compression=compression)
    write_atomic(path, buffer.getvalue())
