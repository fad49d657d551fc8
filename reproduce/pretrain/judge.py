"""Train the held-out judges (`otca/tasks/judge.py`); `reproduce/judged.py` measures them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from otca.tasks import video_scenes
from otca.tasks.judge import STRIDE, HeldOutJudge, Maps
from otca.tasks.rendering import finished, render
from otca.tasks.scenes import COLORS, SHAPES, SIZE, Scene
from otca.tasks.video_judge import VideoJudge
from reproduce.pretrain.drawings import Label, ghosts, random_drawing, random_emptiness, random_spec_scene
from reproduce.pretrain.loop import train
from reproduce.pretrain.vae import reconstruct

FAITHFUL = 0.25
"""Largest error, in any channel of any 4×4 patch, of a reconstruction that still shows what its labels say."""

_GRID = SIZE // STRIDE
_CELL_Y, _CELL_X = np.mgrid[0:_GRID, 0:_GRID].astype(np.float32) + 0.5


def pretrain_judge(
    folder: Path, steps: int, vae=None, batch: int = 32, learning_rate: float = 4e-3, seed: int = 0
) -> HeldOutJudge:
    """Returns the trained judge; resumable (see `loop.train`). With a VAE, half of each batch goes through it."""
    torch.manual_seed(seed)
    judge = HeldOutJudge()

    def loss_at(step, rng, generator):
        image_BCHW, targets = judge_batch(rng, batch)
        if vae is not None:
            image_BCHW[::2] = faithful_reconstruction(vae, image_BCHW[::2])
        return detection_loss(judge(augment(image_BCHW, rng, generator)), targets)

    train("judge", {"judge": judge}, loss_at, steps, learning_rate, folder, seed=seed)
    return judge


def pretrain_video_judge(
    folder: Path, steps: int, vae, start: Path, batch: int = 16, learning_rate: float = 2e-3, seed: int = 0
) -> VideoJudge:
    """Returns the image judge of ``start`` trained on frames of reconstructed clips too, half of each batch; resumable."""
    judge = VideoJudge.from_pretrained(start)
    specs = [spec for skill in video_scenes.SKILLS for spec in video_scenes.all_specs(skill)]

    def loss_at(step, rng, generator):
        still_NCHW, still = judge_batch(rng, batch)
        clips = [video_scenes.draw_clip(specs[rng.integers(len(specs))], rng, lattice=True) for _ in range(batch // 4)]
        media = reconstruct(vae, torch.from_numpy(np.stack([video_scenes.render_clip(clip) for clip in clips])))
        when = [[int(t) for t in rng.permutation(video_scenes.FRAMES)[:4]] for _ in clips]
        frame_NCHW = torch.stack([media[i, t] for i, times in enumerate(when) for t in times])
        moving = grid_targets([scene_labels(clip.frame(t)) for clip, times in zip(clips, when) for t in times])
        targets = Targets(*(torch.cat(pair) for pair in zip(still, moving)))
        return detection_loss(judge(augment(torch.cat([still_NCHW, frame_NCHW]), rng, generator)), targets)

    train("judge", {"judge": judge}, loss_at, steps, learning_rate, folder, seed=seed)
    return judge


# ----------------------------------------------------------------------------------------------------------------- data


class Targets(NamedTuple):
    """What `Maps` should be: heat_BYX in [0, 1], offset_B2YX in cells, class indices shape_BYX and color_BYX.

    ``weight_BYX`` is 1 at a thing's middle cell, 0.3 in the cells beside it and elsewhere within 60 % of its radius
    (wherever its peak may come to lie), 0 outside; a colour of -1 is not judged.
    """

    heat_BYX: torch.Tensor
    offset_B2YX: torch.Tensor
    shape_BYX: torch.Tensor
    color_BYX: torch.Tensor
    weight_BYX: torch.Tensor


def grid_targets(labels: list[list[Label]]) -> Targets:
    """The targets of a batch, from the labels of each image."""
    size = (len(labels), _GRID, _GRID)
    heat, weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
    offset = np.zeros((len(labels), 2, _GRID, _GRID), np.float32)
    shape, color = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    for b, found in enumerate(labels):
        for label in found:
            x, y = (min(v / STRIDE, _GRID - 0.01) for v in (label.x, label.y))
            column, row = int(x), int(y)
            dx, dy = _CELL_X - column - 0.5, _CELL_Y - row - 0.5
            heat[b] = np.maximum(heat[b], np.exp(-(dx**2 + dy**2) / (2 * 0.9**2)))
            reach = max(1.5, 0.6 * label.radius / STRIDE)
            near = (np.maximum(np.abs(dx), np.abs(dy)) < reach) & (weight[b] < 1)
            weight[b][near], shape[b][near], color[b][near] = 0.3, label.shape, label.color
            offset[b, 0][near], offset[b, 1][near] = (x - _CELL_X)[near], (y - _CELL_Y)[near]
            weight[b, row, column] = 1.0
    return Targets(*(torch.from_numpy(v) for v in (heat, offset, shape, color, weight)))


def judge_batch(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, Targets]:
    """Training images (count, 3, SIZE, SIZE) in [0, 1]: legal scenes, free drawings, double exposures and emptiness."""
    images, labels = [], []
    for _ in range(count):
        kind = rng.uniform()
        if kind < 0.4:
            scene = random_spec_scene(rng, lattice=len(images) % 2 == 0)  # these go through the autoencoder
            image, found = render(scene), scene_labels(scene)
        elif kind < 0.88:
            image, found = random_drawing(rng)
        elif kind < 0.93:
            pair = [random_drawing(rng, fault_rate=0.0) for _ in range(2)]
            image, found = ghosts([image for image, _ in pair], [found for _, found in pair], rng)
        else:
            image, found = random_emptiness(rng), []
        images.append(finished(image, rng.uniform()) if kind >= 0.4 and rng.uniform() < 0.7 else image)
        labels.append(found)
    return torch.from_numpy(np.stack(images)), grid_targets(labels)


def scene_labels(scene: Scene) -> list[Label]:
    """Labels of a scene as rendered: every object is valid."""
    colors = list(COLORS)
    return [Label(o.x, o.y, o.radius, SHAPES.index(o.shape), colors.index(o.color)) for o in scene.objects]


def faithful_reconstruction(vae, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Images through the VAE, save those that it redraws as something else (it mends faded and off-palette objects)."""
    out = reconstruct(vae, image_BCHW)
    error_B = nn.functional.avg_pool2d((out - image_BCHW).abs(), 4).amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(error_B < FAITHFUL, out, image_BCHW)


def augment(image_BCHW: torch.Tensor, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
    """Blur, colour gain, contrast, brightness and noise, each on a third of the images; clamped to [0, 1]."""

    def strength(low: float, high: float) -> torch.Tensor:
        on = torch.rand(len(image_BCHW), 1, 1, 1, generator=generator) < 0.35
        return on * (low + (high - low) * torch.rand(len(image_BCHW), 1, 1, 1, generator=generator))

    sigma = float(rng.uniform(0.4, 1.1))
    tap = torch.exp(-(torch.arange(-3, 4).float() ** 2) / (2 * sigma**2))
    kernel = torch.outer(tap, tap) / tap.sum() ** 2
    padded = nn.functional.pad(image_BCHW, (3, 3, 3, 3), mode="replicate")
    blurred = nn.functional.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)
    image = torch.lerp(image_BCHW, blurred, strength(0.0, 1.0))
    gain = 1 + strength(-0.06, 0.06) * (2 * torch.rand(len(image), 3, 1, 1, generator=generator) - 1)
    image = ((image - 0.5) * (1 + strength(-0.12, 0.12)) + 0.5) * gain + strength(-0.06, 0.06)
    noise = torch.randn(image.shape, generator=generator)
    return (image + strength(0.0, 0.06) * noise).clamp(0, 1)


# ----------------------------------------------------------------------------------------------------------------- loss


def detection_loss(maps: Maps, targets: Targets) -> torch.Tensor:
    """Penalty-reduced focal loss of the centres (CornerNet, eq. 1), class cross-entropies and offset error near them."""
    things = (targets.heat_BYX == 1).sum().clamp(min=1)
    log_p, log_q = nn.functional.logsigmoid(maps.heat_BYX), nn.functional.logsigmoid(-maps.heat_BYX)
    p = log_p.exp()
    at_centre = targets.heat_BYX == 1
    focal = torch.where(at_centre, (1 - p) ** 2 * log_p, (1 - targets.heat_BYX) ** 4 * p**2 * log_q)
    weight = targets.weight_BYX
    shape = nn.functional.cross_entropy(maps.shape_BSYX, targets.shape_BYX, reduction="none")
    color = nn.functional.cross_entropy(maps.color_BKYX, targets.color_BYX, ignore_index=-1, reduction="none")
    offset = (maps.offset_B2YX - targets.offset_B2YX).abs().sum(1)
    return -focal.sum() / things + ((shape + color + 0.5 * offset) * weight).sum() / weight.sum().clamp(min=1)
