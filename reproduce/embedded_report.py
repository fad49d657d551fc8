"""What the embedded task is like: `python -m reproduce.embedded_report` → results/embedded/image.{csv,md,png}.

Accuracy of the two judges on renders and reconstructions; on base-model samples held-out accuracy by skill and without
guidance, agreement of the judges, raw scale of each reward and their correlations (they decide how a raw sum weighs the
objectives).
`--render` rebuilds image.md and the README block from image.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from eval.evaluate import score_items, write_rows
from eval.generate import generate
from eval.metrics.alignment import JudgeAccuracy
from otca.config import EvalConfig, PolicyConfig
from otca.embedded import verifier
from otca.embedded.scenes import SKILLS, change_one_attribute, draw_scene, prompts, render
from otca.files import write_atomic
from otca.policies.base import build_policy
from otca.rewards.base import build_reward
from reproduce.pretrain.vae import reconstruct
from reproduce.readme import update_readme

REWARDS = ("alignment", "quality", "aesthetic")
FOLDER = Path("results/embedded")
SCENES, SAMPLES = 1800, EvalConfig(prompts=1200, samples_per_prompt=1)


def judge_rows(vae, judge) -> list[dict]:
    """Share of right verdicts of both judges on renders and reconstructions, as drawn and with one attribute changed."""
    rng = np.random.default_rng(606)
    wanted = prompts("test", SCENES, seed=606)
    scenes = [draw_scene(p.spec, rng) for p in wanted]
    changed = [change_one_attribute(scene, rng) for scene in scenes]
    rows = []
    for what, drawn, right in (("as drawn", scenes, True), ("one attribute changed", changed, False)):
        image_BCHW = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
        with torch.no_grad():
            rebuilt_BCHW = torch.cat([reconstruct(vae, part) for part in image_BCHW.split(60)])
        for medium, images in (("renders", image_BCHW), ("reconstructions", rebuilt_BCHW)):
            verdicts = {
                "verifier": np.array([verifier.satisfied(verifier.read(i.numpy()), p.spec) for i, p in zip(images, wanted)]),
                "judge": judge.verdict(images.unsqueeze(1), wanted).numpy(),
            }
            rows += [row("right", f"{name}, {medium}, {what}", (v == right).mean(), SCENES) for name, v in verdicts.items()]
    return rows


def base_rows(policy, judge: JudgeAccuracy) -> tuple[list[dict], torch.Tensor]:
    """Rows about base-model samples, and the samples."""
    media, wanted = generate(policy, SAMPLES, seed=606)
    items = score_items(media, wanted, [*(build_reward(name) for name in REWARDS), judge])
    hard = np.array([verifier.satisfied(verifier.read(m[0].numpy()), p.spec) for m, p in zip(media, wanted)])
    correct = items["judge_correct"].to_numpy() == 1
    rows = [row("accuracy", "overall", correct.mean(), len(items))]
    rows += [
        row("accuracy", skill, correct[items["skill"] == skill].mean(), int((items["skill"] == skill).sum())) for skill in SKILLS
    ]
    rows.append(row("agreement", "judge and verifier", (hard == correct).mean(), len(items)))
    for name in REWARDS:
        rows += [
            row("mean", name, items[name].mean(), len(items)),
            row("standard deviation", name, items[name].std(ddof=0), len(items)),
        ]
    table = items[list(REWARDS)].corr()
    pairs = [(a, b) for i, a in enumerate(REWARDS) for b in REWARDS[i + 1 :]]
    rows += [row("correlation", f"{a} and {b}", table.loc[a, b], len(items)) for a, b in pairs]
    within = items.assign(prompt=[p.text for p in wanted])[["prompt", *REWARDS]]
    centred = within[list(REWARDS)] - within.groupby("prompt")[list(REWARDS)].transform("mean")
    table = centred.corr()
    rows += [row("correlation within a prompt", f"{a} and {b}", table.loc[a, b], len(items)) for a, b in pairs]
    return rows, media


def row(kind: str, name: str, value: float, n: int) -> dict:
    """One line of image.csv."""
    return {"kind": kind, "name": name, "value": float(value), "n": n}


def contact_sheet(media_BFCHW: torch.Tensor, path: Path, across: int = 12, down: int = 4) -> None:
    """The first samples, enlarged twice, the six skills in turn."""
    tiles = media_BFCHW[: across * down, 0].unflatten(0, (down, across)).permute(0, 3, 1, 4, 2)
    pixels = (tiles.flatten(2, 3).flatten(0, 1) * 255).round().to(torch.uint8).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(path)


def write_markdown() -> None:
    """image.md from image.csv, then the README block."""
    rows = pd.read_csv(FOLDER / "image.csv")
    lines = ["# Embedded image task", ""]
    for kind, part in rows.groupby("kind", sort=False):
        cells = ", ".join(f"{name} {value:.3f}" for name, value in zip(part["name"], part["value"]))
        lines.append(f"- {kind.capitalize()} (n = {', '.join(str(n) for n in sorted(set(part['n'])))}): {cells}.")
    write_atomic(FOLDER / "image.md", "\n".join(lines) + "\n")
    update_readme("embedded-image", FOLDER / "image.md")


def main() -> None:
    """Measure and write, or only render."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.embedded_report", description=__doc__)
    parser.add_argument("--render", action="store_true", help="only rebuild the text from image.csv")
    if not parser.parse_args().render:
        policy, judge = build_policy(PolicyConfig()), JudgeAccuracy()
        rows, media = base_rows(policy, judge)
        free, wanted = generate(build_policy(PolicyConfig(true_guidance=1.0)), SAMPLES, seed=606)
        rows.append(row("accuracy without guidance", "overall", judge.score(free, wanted).mean(), len(wanted)))
        rows += judge_rows(policy.pipeline.vae, judge.judge)
        write_rows(pd.DataFrame(rows), FOLDER / "image.csv")
        contact_sheet(media, FOLDER / "image.png")
    write_markdown()
    print((FOLDER / "image.md").read_text())


if __name__ == "__main__":
    main()
