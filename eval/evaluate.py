"""Judge media: one row an item (rewards, verdict, held-out metrics) and one row a set (distances, diversity)."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import torch

from eval.generate import generate
from eval.held_out import MEDIA, HeldOut
from otca.config import EvalConfig
from otca.files import write_atomic
from otca.policies.base import Policy
from otca.rewards.base import Reward, score_all
from otca.types import Prompt


def score_items(
    media_BFCHW: torch.Tensor,
    prompts: list[Prompt],
    rewards: list[Reward],
    held_out: HeldOut | None = None,
    samples_per_prompt: int = 1,
) -> pd.DataFrame:
    """One row an item: prompt_id, sample, skill, text, one column a reward, then the held-out columns."""
    rows = pd.DataFrame(
        {
            "prompt_id": [p.id for p in prompts],
            "sample": [i % samples_per_prompt for i in range(len(prompts))],
            "skill": [(p.spec or {}).get("skill", "") for p in prompts],
            "text": [p.text for p in prompts],
        }
    )
    columns: dict[str, list[float]] = {}
    if rewards:
        scores = score_all(rewards, media_BFCHW, prompts)
        columns |= dict(zip(scores.names, scores.reward_BK.T.tolist()))
    if held_out is not None:
        columns |= held_out.items(media_BFCHW, prompts)
    return rows.assign(**columns)


def evaluate(policy: Policy, medium: str, config: EvalConfig, seed: int, rewards: list[Reward], folder: Path) -> dict:
    """Generate, score and write ``media/``, ``scores.csv.gz`` and ``sets.csv`` into the folder; returns the protocol."""
    media_BFCHW, prompts = generate(policy, config, seed, folder / "media")
    held_out = MEDIA[medium]()
    write_rows(score_items(media_BFCHW, prompts, rewards, held_out, config.samples_per_prompt), folder / "scores.csv.gz")
    sets = held_out.sets(media_BFCHW, prompts, config.samples_per_prompt)
    rows = [(metric, value, count) for metric, (value, count) in sets.items()]
    write_rows(pd.DataFrame(rows, columns=["metric", "value", "n"]), folder / "sets.csv")
    return {
        "sampler": "ode",
        "steps": config.steps,
        "shift": config.shift or policy.shift,
        "prompts": config.source,
        "prompt_count": config.prompts,
        "samples_per_prompt": config.samples_per_prompt,
        "noise_seed": seed,
        "policy": policy.protocol,
        **{reward.name: {"source": getattr(reward, "source", "")} for reward in rewards},
        **held_out.protocol,
    }


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """CSV with six significant digits, gzipped (without a time stamp) where the name says so; written atomically."""
    buffer = io.BytesIO()
    compression = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    rows.to_csv(buffer, index=False, float_format="%.6g", lineterminator="\n", compression=compression)
    write_atomic(path, buffer.getvalue())
