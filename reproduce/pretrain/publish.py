"""Put pre-trained checkpoints into the package: files, SHA-256, what they cost and what they can do."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from otca import presets
from otca.config import PolicyConfig
from otca.files import EMBEDDED, write_atomic, write_hashes
from otca.models.base import build_policy
from otca.sampling import sigmas_S
from reproduce.judged import Task

PROMPTS, DRAWS = 96, 16
"""Validation prompts and samples of each behind pass@1 and pass@16."""


def publish(folder: Path, modality: str, task: Task, models: dict[str, str], notes: dict) -> None:
    """Copy ``folder/<source>`` to the package's checkpoint <name> (``models``: source → name), each with its hashes.

    `pretrain-<modality>.json` records steps and seconds of each stage and what the base model can do (see `abilities`).
    """
    write_atomic(folder / "pipeline" / "otca.json", json.dumps(notes) + "\n")
    for source, name in models.items():
        target = EMBEDDED / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / source, target)
        write_hashes(target)
        print(f"published {target} ({sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.2f} MB)")
    states = {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    record = {"task": task.grammar.NAME}
    record |= {name: {"steps": state["done"], "seconds": round(state["elapsed"])} for name, state in states.items()}
    record |= abilities(folder / "pipeline", modality, task, task.judge.from_pretrained(folder / "judge"), notes)
    write_atomic(EMBEDDED / f"pretrain-{modality}.json", json.dumps(record, indent=1) + "\n")


@torch.no_grad()
def abilities(pipeline: Path, modality: str, task: Task, judge, notes: dict) -> dict:
    """By skill: pass@1 and pass@16 by the judge, in the tiers' protocol; and how often the two judges agree on the samples."""
    policy = build_policy(PolicyConfig(path=str(pipeline), **notes))
    prompts = task.grammar.prompts("validation", PROMPTS, seed=3)
    protocol = presets.eval_config(f"{modality}/cpu")
    sigma = sigmas_S(protocol.steps, protocol.shift).tolist()
    condition = policy.encode([p.text for p in prompts])
    right, agreed = [], []
    for draw in range(DRAWS):
        x = policy.noise([torch.Generator().manual_seed(draw * PROMPTS + i) for i in range(PROMPTS)])
        for here, there in pairwise(sigma):
            x = x - (here - there) * policy.velocity(x, torch.full((PROMPTS,), here), condition)
        media = policy.decode(x)
        right.append(judge.verdict(media, prompts).numpy())
        agreed.append(np.mean(right[-1] == task.verdicts(media, prompts)))
    right_DP, skills = np.array(right), task.grammar.SKILLS
    by_skill = {skill: right_DP[:, i :: len(skills)] for i, skill in enumerate(skills)}
    return {
        "pass@1": {skill: round(float(r.mean()), 3) for skill, r in by_skill.items()} | {"all": round(float(right_DP.mean()), 3)},
        f"pass@{DRAWS}": {skill: round(float(r.any(0).mean()), 3) for skill, r in by_skill.items()},
        "agreement": round(float(np.mean(agreed)), 3),
    }
