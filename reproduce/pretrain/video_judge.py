"""Train and measure the held-out judge of the embedded video task (`otca/tasks/video_judge.py`).

The detector of frames starts from the image judge's weights and sees still drawings, legal clips and moving free drawings
with faults, some reconstructed. The reader of motions sees synthetic tracks: legal but sloppy, and illegal in ten ways.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from otca.tasks import video_scenes
from otca.tasks.judge import OTHER, STRIDE, HeldOutJudge
from otca.tasks.scenes import SIZE
from otca.tasks.video_judge import DIRECTION_CLASSES, KINDS, NOWHERE, UNIT_RADIUS, VideoJudge
from otca.tasks.video_scenes import FRAMES, SKILLS, STRAIGHT, Clip, change_one_attribute, draw_clip, frame_of, render_clip
from otca.types import Prompt
from reproduce.pretrain.drawings import FAULTS, Label, draw_thing, ghosts, random_background
from reproduce.pretrain.judge import FAITHFUL, Targets, augment, detection_loss, grid_targets, judge_batch, scene_labels
from reproduce.pretrain.loop import train

Reconstruct = Callable[[torch.Tensor], torch.Tensor]
"""Media (B, FRAMES, 3, SIZE, SIZE) in [0, 1] through an autoencoder and back."""

ACCURACIES = ("clean", "changed", "reconstruction", "changed_reconstruction")
"""What `video_judge_accuracy` looks at; the judge must accept the first and third, and refuse the others."""


def pretrain_video_judge(
    folder: Path, start: Path, reconstruct: Reconstruct | None = None, steps: int = 3000, reader_steps: int = 5000, seed: int = 0
) -> VideoJudge:
    """Returns the trained judge; resumable (see `loop.train`). ``start`` is the image judge's folder."""
    torch.manual_seed(seed)
    judge = VideoJudge()
    judge.detector = HeldOutJudge.from_pretrained(start)

    def detector_loss(step, rng, generator):
        image_NCHW, targets, labels = detector_batch(rng, reconstruct)
        maps, log_radius_NYX = judge.frame_maps(augment(image_NCHW, rng, generator))
        return detection_loss(maps, targets) + radius_error(log_radius_NYX[-len(labels) :], labels)

    def reader_loss(step, rng, generator):
        columns = (torch.from_numpy(np.stack(column)) for column in zip(*(random_track(rng) for _ in range(256))))
        center, log_radius, *classes, speed = columns
        *logits, found = judge.reader(torch.view_as_real(center).float(), log_radius.float())
        known = speed > 0
        errors = [nn.functional.cross_entropy(*pair, ignore_index=-1) for pair in zip(logits, classes)]
        return sum(errors) + (found[known] / speed[known]).log().abs().mean()

    eyes = {"detector": judge.detector, "radius": judge.radius}
    train("video_judge_detector", eyes, detector_loss, steps, 2e-3, folder, seed=seed)
    train("video_judge_reader", {"reader": judge.reader}, reader_loss, reader_steps, 3e-3, folder, seed=seed)
    return judge.eval()


def radius_error(log_radius_NYX: torch.Tensor, labels: list[list[Label]]) -> torch.Tensor:
    """Mean absolute error of the log radius in the nine cells around each thing that is not malformed."""
    things = [(n, label) for n, found in enumerate(labels) for label in found if label.color >= 0]
    n, y, x, radius = torch.tensor([(n, one.y // STRIDE, one.x // STRIDE, one.radius) for n, one in things]).T
    patches = nn.functional.unfold(log_radius_NYX[:, None], 3, padding=1).view(len(labels), 9, *log_radius_NYX.shape[1:])
    return (patches[n.long(), :, y.long(), x.long()] - (radius[:, None] / UNIT_RADIUS).log()).abs().mean()


# ------------------------------------------------------------------------------------------------------ frames to train on


def detector_batch(rng, reconstruct: Reconstruct | None) -> tuple[torch.Tensor, Targets, list[list[Label]]]:
    """16 still drawings, then five frames each of four clips: images (36, 3, SIZE, SIZE), targets, labels of the latter 20."""
    still, still_targets = judge_batch(rng, 16)
    clips = [random_clip(rng), random_clip(rng), moving_drawing(rng), moving_drawing(rng)]
    media = torch.from_numpy(np.stack([frames for frames, _ in clips]))
    if reconstruct is not None:
        media[:3] = faithful(media[:3], reconstruct)
    images, labels = [], []
    for clip, (_, found) in zip(media.numpy(), clips):
        for i in rng.permutation(FRAMES)[:5]:
            image, here, j = clip[i], found[i], (i + rng.integers(3, 7)) % FRAMES
            if rng.uniform() < 0.15 and all(np.hypot(a.x - b.x, a.y - b.y) > 5 for a, b in zip(here, found[j])):
                image, here = ghosts([image, clip[j]], [here, found[j]], rng)
            images.append(image)
            labels.append(here)
    targets = (torch.cat(pair) for pair in zip(still_targets, grid_targets(labels)))
    return torch.cat([still, torch.from_numpy(np.stack(images))]), Targets(*targets), labels


def random_clip(rng: np.random.Generator) -> tuple[np.ndarray, list[list[Label]]]:
    """A legal clip: float32 (FRAMES, 3, SIZE, SIZE) in [0, 1], and the labels of each frame."""
    clip = draw_clip(random_spec(rng), rng)
    return render_clip(clip), [scene_labels(frame_of(clip, i)) for i in range(FRAMES)]


def random_spec(rng: np.random.Generator, skill: str | None = None) -> dict:
    """A spec of any split; skills evenly, unless one is named."""
    specs = skill_specs(skill or SKILLS[rng.integers(len(SKILLS))])
    return specs[rng.integers(len(specs))]


skill_specs = functools.cache(video_scenes.all_specs)


def moving_drawing(rng: np.random.Generator) -> tuple[np.ndarray, list[list[Label]]]:
    """As `random_clip`: 1–4 things of any look that drift and scale apart, faulty ones in half of the clips."""
    share, sloppiness = rng.uniform(0.2, 1.0) * (rng.uniform() < 0.5), rng.uniform(0, 1) * (rng.uniform() < 0.6)
    count, t = int(rng.integers(1, 5)), np.linspace(0, 1, FRAMES)
    things: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(8 * count):
        r, end = np.exp(rng.uniform(np.log(6.2), np.log((19.0, 14.0, 11.0, 9.0)[count - 1]), 2))
        r = r + (end - r) * t * (rng.uniform() < 0.4)
        x, y = (a + np.clip(b - a, -32, 32) * t for a, b in rng.uniform(6, SIZE - 6, (2, 2)))
        inside = (np.minimum(np.minimum(x, SIZE - x), np.minimum(y, SIZE - y)) > 1.15 * r).all()
        if inside and all((np.hypot(x - a, y - b) > 1.12 * (r + c) + 1.5).all() for a, b, c in things):
            things.append((x, y, r))
    looks = [(str(rng.choice(FAULTS)) if rng.uniform() < share else None, int(rng.integers(2**31))) for _ in things[:count]]
    images, labels = [random_background(rng)] * FRAMES, [[] for _ in range(FRAMES)]
    for i in range(FRAMES):
        for (x, y, r), (fault, look) in zip(things, looks):
            images[i], found = draw_thing(images[i], x[i], y[i], r[i], fault, sloppiness, np.random.default_rng(look))
            labels[i] += found
    return np.stack(images), labels


@torch.no_grad()
def faithful(media_BFCHW: torch.Tensor, reconstruct: Reconstruct) -> torch.Tensor:
    """Clips reconstructed, save the frames that are redrawn as something else (see `FAITHFUL`)."""
    out = reconstruct(media_BFCHW)
    error_BF = nn.functional.avg_pool2d((out - media_BFCHW).abs().flatten(0, 1), 4).amax(dim=(1, 2, 3)).view(out.shape[:2])
    return torch.where(error_BF[..., None, None, None] < FAITHFUL, out, media_BFCHW)


# ------------------------------------------------------------------------------------------------------ tracks to train on

TRACK_FAULTS = ("shuffled", "partial", "uneven", "pace", "askew", "resized", "pulsing", "mixed", "jump", "shaky")
"""Ways in which a track is no motion of the grammar."""


@functools.cache
def motions() -> dict[str, list[tuple[dict, np.ndarray]]]:
    """Every motion by kind, with its path x + iy (F,) at one pixel a frame; of kind ``other``, standing still."""
    out: dict[str, list] = {kind: [] for kind in KINDS} | {OTHER: [(video_scenes.motion(OTHER), np.zeros(FRAMES))]}
    for m in (o["motion"] for skill in SKILLS[:-1] for spec in skill_specs(skill) for o in spec["objects"]):
        if m["speed"] is None and m not in [known for known, _ in out[m["kind"]]]:
            out[m["kind"]].append((m, video_scenes.path(m, 1.0) @ [1, 1j]))
    return out


def random_track(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int, int, float]:
    """A track and what `MotionReader` should say: centres x + iy (F,), log radii (F,), three classes, speed.

    Half of the tracks have one of `TRACK_FAULTS`. A class of -1 and a speed of 0 are not judged.
    """
    kind = KINDS[rng.integers(len(KINDS))]
    m, path = motions()[kind][rng.integers(len(motions()[kind]))]
    fault = str(rng.choice(TRACK_FAULTS)) if rng.uniform() < 0.5 else None
    sign, frame = rng.choice([-1, 1]), np.arange(FRAMES)

    late = sign * rng.uniform(1.5, 2.4) if fault == "uneven" else np.clip(0.2 * rng.normal(), -0.4, 0.4)
    time = frame + late * np.sin(np.pi * frame / 8)
    if fault == "shuffled":
        time = rng.permutation(frame)
    elif fault == "partial":
        begin = rng.uniform(0, 5)
        time = np.clip(time, begin, begin + rng.uniform(2, 5))
    speed = np.exp(rng.uniform(np.log(0.9 if kind == "move" else 1.4), np.log(5.0)))
    growth = np.log(rng.uniform(1.6, 2.4)) if kind in ("grow", "shrink") else 0.03 * rng.normal()
    if fault == "pace":
        slow, fast = (rng.uniform(0.3, 0.6), 0.3 * growth), (rng.uniform(5.8, 7.5), 2.0 * growth)
        speed, growth = slow if sign < 0 else fast
    elif fault == "resized":
        growth = sign * np.log(rng.uniform(1.35, 2.4))
    angle = sign * rng.uniform(17, 28) if fault == "askew" else np.clip(4 * rng.normal(), -9, 9)
    center = speed * np.interp(time, frame, path) * np.exp(1j * np.deg2rad(angle))
    log_radius = np.log1p(np.expm1(abs(growth)) * (1 - time / 8 if kind == "shrink" or growth < 0 else time / 8))
    if fault == "mixed":
        _, other = motions()[KINDS[rng.integers(4)]][rng.integers(4)]
        center = center + (speed * other - center) * rng.uniform(0.3, 0.7)
    elif fault == "jump":
        first = rng.integers(1, FRAMES)
        back = FRAMES if rng.uniform() < 0.5 else first + rng.integers(1, 3)
        center[first:back] += rng.uniform(3.5, 8) * np.exp(2j * np.pi * rng.uniform())
    elif fault == "pulsing":
        log_radius = log_radius + sign * rng.uniform(0.25, 0.6) * np.sin(np.pi * frame / 8)
    elif fault == "shaky":
        center = center + rng.uniform(1.0, 3.0) * (rng.normal(size=(FRAMES, 2)) @ [1, 1j])
    if fault and near_legal(center, log_radius):
        return random_track(rng)

    if not m["direction"]:
        center = center + rng.uniform(0, 0.19) * frame * np.exp(2j * np.pi * rng.uniform())
    center = center + rng.uniform(0, 0.4) * (rng.normal(size=(FRAMES, 2)) @ [1, 1j])
    log_radius = log_radius + rng.uniform(0, 0.04) * rng.normal(size=FRAMES)
    read = fault in (None, "uneven", "pace", "resized")  # where it goes, and how fast, can be told
    direction = DIRECTION_CLASSES.index(m["direction"] or NOWHERE) if read else -1
    then = STRAIGHT.index(m["then"]) if read and m["then"] else -1
    classes = KINDS.index(OTHER if fault else kind), direction, then
    return center, log_radius, *classes, speed if read and m["direction"] else 0.0


def near_legal(center: np.ndarray, log_radius: np.ndarray) -> bool:
    """Whether a track is, within 0.9 pixels (root mean square), a legal path at any plausible speed, or plain growth."""
    path_MF = _centred_paths()
    across_M, center, ramp = np.square(np.abs(path_MF)).sum(1), center - center.mean(), np.linspace(-0.5, 0.5, FRAMES)
    speed_M, growth = (path_MF.conj() @ center).real / across_M, log_radius @ ramp / (ramp @ ramp)
    error_M = (np.square(np.abs(center)).sum() - speed_M**2 * across_M) / FRAMES
    moving = error_M[(speed_M > 0.8) & (speed_M < 5.4)].min(initial=np.inf) + 100 * np.var(log_radius)
    scaling = np.square(np.abs(center)).mean() + 100 * np.var(log_radius - growth * ramp)
    return bool(moving < 0.9**2 or (scaling < 0.9**2 and 1.35 < np.exp(abs(growth)) < 2.8))


@functools.cache
def _centred_paths() -> np.ndarray:
    return np.stack([path - path.mean() for found in motions().values() for m, path in found if m["direction"]])


# --------------------------------------------------------------------------------------------------------------- measures


@torch.no_grad()
def video_judge_accuracy(
    judge: VideoJudge, count: int, kind: str, reconstruct: Reconstruct | None = None, seed: int = 10**6
) -> dict[str, float]:
    """Share of right verdicts on ``count`` fresh clips, by skill and ``overall``; ``kind`` is one of `ACCURACIES`.

    Changed clips break their spec in one attribute, so that the right verdict is no. Raises ValueError for an unknown kind.
    """
    if kind not in ACCURACIES:
        raise ValueError(f"unknown kind {kind!r}; choose from {', '.join(ACCURACIES)}")
    rng, changed = np.random.default_rng(seed), kind.startswith("changed")
    right: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for first in range(0, count, 56):
        skills = [SKILLS[i % len(SKILLS)] for i in range(first, min(first + 56, count))]
        clips = [draw_clip(random_spec(rng, skill), rng) for skill in skills]
        media, wanted = rendered([change_one_attribute(clip, rng) for clip in clips] if changed else clips)
        if kind.endswith("reconstruction"):
            media = reconstruct(media)
        for skill, yes in zip(skills, judge.verdict(media, wanted).tolist()):
            right[skill].append(yes != changed)
    everything = [r for answers in right.values() for r in answers]
    return {skill: float(np.mean(answers)) for skill, answers in right.items()} | {"overall": float(np.mean(everything))}


def rendered(clips: list[Clip]) -> tuple[torch.Tensor, list[Prompt]]:
    """Media (B, FRAMES, 3, SIZE, SIZE) of clips, and prompts that demand their specs."""
    media = torch.from_numpy(np.stack([render_clip(clip) for clip in clips]))
    return media, [Prompt(id=str(i), text="", spec=clip.spec) for i, clip in enumerate(clips)]
