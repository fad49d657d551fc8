"""Judge media: one row an item (rewards, verdict, held-out metrics) and one row a set (distances, diversity)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather

from eval.generate import generated, write_index, write_media
from eval.held_out import HeldOut, reward_columns, set_rate
from otca.config import EvalConfig
from otca.distributed import process_state
from otca.files import write_atomic
from otca.models.base import Policy
from otca.prompts import evaluation_prompts
from otca.rewards.base import Reward


def evaluate(policy: Policy, held_out: HeldOut, config: EvalConfig, seed: int, rewards: list[Reward], folder: Path) -> dict:
    """Generate, score and write ``media/``, ``scores.csv.gz`` and ``sets.csv`` into the folder; returns the protocol.

    Only a batch of media is in memory; several processes share the work, the main one writes the rows.
    """
    set_rate(rewards, config.fps)
    processes, each = process_state(), config.samples_per_prompt
    numbers, cells, traits = [], [], []
    for part in generated(policy, config, seed, processes.process_index, processes.num_processes):
        write_media(folder / "media", part, config)
        columns = reward_columns(rewards, part.media_BFCHW, part.prompts) | held_out.items(part.media_BFCHW, part.prompts)
        numbers.append(torch.tensor(part.number_B))
        cells.append(torch.tensor(list(columns.values()), dtype=torch.float64).T)
        traits.append(held_out.traits(part.media_BFCHW, part.prompts))
    number_B = _from_all(numbers).numpy()
    first = np.unique(number_B, return_index=True)[1]
    cell_BC = _from_all(cells).numpy()[first]
    whole = {name: _from_all([trait[name] for trait in traits])[first] for name in traits[0]}
    if processes.is_main_process:
        prompts = [p for p in evaluation_prompts(config) for _ in range(each)]
        write_index(folder / "media", prompts, part.media_BFCHW.shape[1], each)
        names = {
            "prompt_id": [p.id for p in prompts],
            "sample": [i % each for i in range(len(prompts))],
            "skill": [(p.spec or {}).get("skill", "") for p in prompts],
            "text": [p.text for p in prompts],
        }
        write_rows(pd.DataFrame(names | dict(zip(columns, cell_BC.T))), folder / "scores.csv.gz")
        sets = [(metric, value, count) for metric, (value, count) in held_out.sets(whole, prompts, each).items()]
        write_rows(pd.DataFrame(sets, columns=["metric", "value", "n"]), folder / "sets.csv")
    return {
        "sampler": "ode",
        "steps": config.steps,
        "shift": config.shift or policy.shift,
        "prompts": config.source,
        "prompt_count": config.prompts,
        **({"prompt_choice": config.choice} if config.choice != "first" else {}),
        "samples_per_prompt": config.samples_per_prompt,
        "noise_seed": seed,
        **({"height": config.height, "width": config.width} if config.height or config.width else {}),
        "policy": policy.protocol,
        **{reward.name: {"source": getattr(reward, "source", "")} for reward in rewards},
        **held_out.protocol,
    }


def _from_all(parts: list[torch.Tensor]) -> torch.Tensor:
    """Rows of every process, joined on the CPU; each process has as many."""
    return gather(torch.cat(parts).to(process_state().device)).cpu()


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """CSV with six significant digits, gzipped (without a time stamp) where the name says so; written atomically."""
    buffer = io.BytesIO()
    texts = rows.select_dtypes(include=["object", "string"])
    lone = any(texts[name].astype(str).str.contains("\r", regex=False).any() for name in texts)
    compression = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    quoting = csv.QUOTE_NONNUMERIC if lone else csv.QUOTE_MINIMAL  # which leaves a carriage return bare, and so breaks the line
    rows.to_csv(buffer, index=False, float_format="%.6g", lineterminator="\n", compression=compression, quoting=quoting)
    write_atomic(path, buffer.getvalue())
