"""What the two judges of an embedded task are compared on: drawings known to be right or wrong, and reconstructions of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from otca.tasks import scenes, verifier, video_scenes, video_verifier
from otca.types import Prompt
from reproduce.pretrain.vae import reconstruct
from reproduce.pretrain.video_vae import reconstruct_clips


@dataclass(frozen=True)
class Task:
    """How an embedded task draws specs, changes one attribute, renders, verifies and reconstructs media (B, F, 3, H, W)."""

    prompts: Callable[..., list[Prompt]]
    draw: Callable
    change: Callable
    render: Callable[..., np.ndarray]
    verify: Callable[[np.ndarray, dict], bool]
    rebuild: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]

    def verdicts(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> np.ndarray:
        """What the verifier behind the training reward says of each item: bool (B,)."""
        return np.array([self.verify(media.numpy(), prompt.spec) for media, prompt in zip(media_BFCHW, prompts)])


TASKS = {
    "image": Task(
        scenes.prompts,
        partial(scenes.draw_scene, lattice=True),
        partial(scenes.change_one_attribute, lattice=True),
        lambda scene: scenes.render(scene)[None],
        lambda media, spec: verifier.satisfied(verifier.read(media)[0], spec),
        lambda vae, media: torch.cat([reconstruct(vae, part) for part in media[:, 0].split(60)]).unsqueeze(1),
    ),
    "video": Task(
        video_scenes.prompts,
        video_scenes.draw_clip,
        video_scenes.change_one_attribute,
        video_scenes.render_clip,
        lambda media, spec: video_verifier.satisfied(video_verifier.read(media), spec),
        reconstruct_clips,
    ),
}


def drawings(task: Task, count: int, vae: torch.nn.Module, seed: int = 606) -> Iterator[tuple[str, torch.Tensor, list, bool]]:
    """(what, media, prompts, the right verdict): renders and reconstructions, as drawn and with one attribute changed."""
    prompts, rng = task.prompts("test", count, seed=seed), np.random.default_rng(seed)
    drawn = [task.draw(prompt.spec, rng) for prompt in prompts]
    changed = [task.change(scene, rng) for scene in drawn]
    for state, many, right in (("", drawn, True), ("_changed", changed, False)):
        media = torch.from_numpy(np.stack([task.render(scene) for scene in many]))
        yield f"renders{state}", media, prompts, right
        yield f"reconstructions{state}", task.rebuild(vae, media), prompts, right
