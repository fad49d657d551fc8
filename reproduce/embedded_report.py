"""What an embedded task is like: `python -m reproduce.embedded_report [--modality video]` → results/embedded/<modality>.{csv,md,png}.

Accuracy of the two judges on renders and reconstructions; on base-model samples held-out accuracy by skill, agreement of the
judges, raw scale of each reward and their correlations (they decide how a raw sum weighs the objectives).
`--render` rebuilds the text and the README block from the csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from eval.evaluate import score_items, write_rows
from eval.generate import generate
from eval.held_out import MEDIA
from eval.plots import contact_sheet
from otca.config import PolicyConfig
from otca.eval_config import EvalConfig
from otca.files import write_atomic
from otca.models.base import build_policy
from otca.rewards.base import build_reward
from otca.tasks import scenes, verifier, video_scenes, video_verifier
from otca.types import Prompt
from reproduce.pretrain.vae import reconstruct
from reproduce.pretrain.video_vae import reconstruct_clips
from reproduce.readme import update_readme

FOLDER = Path("results/embedded")
SEED = 606


@dataclass(frozen=True)
class Task:
    """One embedded task: its rewards and skills, how it draws, and how its verifier and its autoencoder are asked.

    ``draw(prompts, rng)`` gives media of the prompts and media with one attribute changed, each (B, F, 3, H, W).
    """

    rewards: tuple[str, ...]
    skills: tuple[str, ...]
    prompts: Callable[..., list[Prompt]]
    draw: Callable[[list[Prompt], np.random.Generator], tuple[torch.Tensor, torch.Tensor]]
    verify: Callable[[np.ndarray, dict], bool]
    rebuild: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
    drawings: int
    samples: int


def draw_images(wanted: list[Prompt], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders of the prompts, and with one attribute changed: (B, 1, 3, H, W) each."""
    drawn = [scenes.draw_scene(p.spec, rng) for p in wanted]
    changed = [scenes.change_one_attribute(scene, rng) for scene in drawn]
    right, wrong = (torch.from_numpy(np.stack([scenes.render(s) for s in many])) for many in (drawn, changed))
    return right.unsqueeze(1), wrong.unsqueeze(1)


def draw_clips(wanted: list[Prompt], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered clips of the prompts, and with one attribute changed: (B, F, 3, H, W) each."""
    drawn = [video_scenes.draw_clip(p.spec, rng) for p in wanted]
    changed = [video_scenes.change_one_attribute(clip, rng) for clip in drawn]
    right, wrong = (torch.from_numpy(np.stack([video_scenes.render_clip(c) for c in many])) for many in (drawn, changed))
    return right, wrong


TASKS = {
    "image": Task(
        rewards=("alignment", "quality", "aesthetic"),
        skills=scenes.SKILLS,
        prompts=scenes.prompts,
        draw=draw_images,
        verify=lambda media, spec: verifier.satisfied(verifier.read(media[0]), spec),
        rebuild=lambda vae, media: torch.cat([reconstruct(vae, part) for part in media[:, 0].split(60)]).unsqueeze(1),
        drawings=1800,
        samples=1200,
    ),
    "video": Task(
        rewards=("vq", "mq", "ta"),
        skills=video_scenes.SKILLS,
        prompts=video_scenes.prompts,
        draw=draw_clips,
        verify=lambda media, spec: video_verifier.satisfied(video_verifier.read(media), spec),
        rebuild=reconstruct_clips,
        drawings=700,
        samples=700,
    ),
}


def judge_rows(task: Task, vae, judge) -> list[dict]:
    """Share of right verdicts of both judges on renders and reconstructions, as drawn and with one attribute changed."""
    wanted = task.prompts("test", task.drawings, seed=SEED)
    rows = []
    for what, drawn, right in zip(
        ("as drawn", "one attribute changed"), task.draw(wanted, np.random.default_rng(SEED)), (True, False)
    ):
        for modality, media in (("renders", drawn), ("reconstructions", task.rebuild(vae, drawn))):
            verdicts = {
                "verifier": np.array([task.verify(m.numpy(), p.spec) for m, p in zip(media, wanted)]),
                "judge": judge.score(media, wanted).numpy() == 1,
            }
            rows += [row("right", f"{name}, {modality}, {what}", (v == right).mean(), len(v)) for name, v in verdicts.items()]
    return rows


def base_rows(modality: str, task: Task, policy, judge) -> tuple[list[dict], torch.Tensor]:
    """Rows about base-model samples, and the samples."""
    config = EvalConfig(source=f"embedded:{modality}/test", prompts=task.samples, samples_per_prompt=1)
    media, wanted = generate(policy, config, seed=SEED)
    items = score_items(media, wanted, [*(build_reward(name) for name in task.rewards), judge])
    hard = np.array([task.verify(m.numpy(), p.spec) for m, p in zip(media, wanted)])
    correct = items["judge_correct"].to_numpy() == 1
    rows = [row("accuracy", "overall", correct.mean(), len(items))]
    for skill in task.skills:
        of_skill = items["skill"] == skill
        rows.append(row("accuracy", skill, correct[of_skill].mean(), int(of_skill.sum())))
    rows.append(row("agreement", "judge and verifier", (hard == correct).mean(), len(items)))
    for name in task.rewards:
        rows.append(row("mean", name, items[name].mean(), len(items)))
        rows.append(row("standard deviation", name, items[name].std(ddof=0), len(items)))
    values = items[list(task.rewards)]
    within = values - values.groupby([p.text for p in wanted]).transform("mean")
    pairs = [(a, b) for i, a in enumerate(task.rewards) for b in task.rewards[i + 1 :]]
    for kind, table in (("correlation", values.corr()), ("correlation within a prompt", within.corr())):
        rows += [row(kind, f"{a} and {b}", table.loc[a, b], len(items)) for a, b in pairs]
    return rows, media


def row(kind: str, name: str, value: float, n: int) -> dict:
    """One line of the csv."""
    return {"kind": kind, "name": name, "value": float(value), "n": n}


def picture(media_BFCHW: torch.Tensor, path: Path, skills: int) -> None:
    """The first samples, the skills in turn: enlarged twice, or each clip's frames as a contact sheet."""
    pixels = (media_BFCHW.permute(0, 1, 3, 4, 2) * 255).round().byte().numpy()
    video = pixels.shape[1] > 1
    across, down = (skills, 3) if video else (2 * skills, 4)
    tiles = np.stack([contact_sheet(clip) if video else clip[0] for clip in pixels[: across * down]])
    tiles = np.pad(tiles, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255) if video else tiles
    _, height, width, _ = tiles.shape
    sheet = tiles.reshape(down, across, height, width, 3).transpose(0, 2, 1, 3, 4).reshape(down * height, across * width, 3)
    factor = 1 if video else 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((sheet.shape[1] * factor, sheet.shape[0] * factor), Image.Resampling.NEAREST).save(path)


def write_markdown(modality: str) -> None:
    """<modality>.md from <modality>.csv, then the README block."""
    rows = pd.read_csv(FOLDER / f"{modality}.csv")
    lines = [f"# Embedded {modality} task", ""]
    for kind, part in rows.groupby("kind", sort=False):
        cells = ", ".join(f"{name} {value:.3f}" for name, value in zip(part["name"], part["value"]))
        lines.append(f"- {kind.capitalize()} (n = {', '.join(str(n) for n in sorted(set(part['n'])))}): {cells}.")
    write_atomic(FOLDER / f"{modality}.md", "\n".join(lines) + "\n")
    update_readme(f"embedded-{modality}", (FOLDER / f"{modality}.md").read_text())


def main() -> None:
    """Measure and write, or only render."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.embedded_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", choices=tuple(TASKS), default="image", help="which task (default: image)")
    parser.add_argument("--render", action="store_true", help="only rebuild the text from the csv")
    args = parser.parse_args()
    if not args.render:
        task = TASKS[args.modality]
        policy, judge = build_policy(PolicyConfig(path=f"embedded:{args.modality}")), MEDIA[args.modality]().judge
        rows, media = base_rows(args.modality, task, policy, judge)
        rows += judge_rows(task, policy.pipeline.vae, judge)
        write_rows(pd.DataFrame(rows), FOLDER / f"{args.modality}.csv")
        picture(media, FOLDER / f"{args.modality}.png", len(task.skills))
    write_markdown(args.modality)
    print((FOLDER / f"{args.modality}.md").read_text())


if __name__ == "__main__":
    main()
