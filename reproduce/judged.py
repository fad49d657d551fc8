"""What each embedded task is made of, and what its two judges are compared on: drawings known to be right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from otca.tasks import rendering, scenes, verifier, video_scenes, video_verifier
from otca.tasks.judge import HeldOutJudge
from otca.tasks.video_judge import VideoJudge
from otca.types import Prompt
from reproduce.pretrain import codes
from reproduce.pretrain.vae import reconstruct


@dataclass(frozen=True)
class Task:
    """An embedded task: its grammar, how a spec is drawn (spec, rng, lattice), rendered (F, 3, H, W), coded and judged."""

    grammar: ModuleType
    draw: Callable
    render: Callable[..., np.ndarray]
    code: Callable[..., np.ndarray]
    verify: Callable[[np.ndarray, list[dict]], list[bool]]
    judge: type[HeldOutJudge]

    def verdicts(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> np.ndarray:
        """What the verifier behind the training reward says of each item: bool (B,)."""
        return np.array(self.verify(media_BFCHW.numpy(), [prompt.spec for prompt in prompts]))


TASKS = {
    "image": Task(
        scenes,
        scenes.draw_scene,
        lambda scene: rendering.render(scene)[None],
        codes.code_of,
        lambda media, specs: [verifier.satisfied(*pair) for pair in zip(verifier.read(media[:, 0]), specs)],
        HeldOutJudge,
    ),
    "video": Task(
        video_scenes,
        video_scenes.draw_clip,
        video_scenes.render_clip,
        codes.clip_code_of,
        lambda media, specs: [video_verifier.satisfied(*pair) for pair in zip(video_verifier.read(media), specs)],
        VideoJudge,
    ),
}


def drawings(
    task: Task, count: int, vae: torch.nn.Module | None, lattice: bool = True, seed: int = 606
) -> Iterator[tuple[str, torch.Tensor, list, bool]]:
    """(what, media, prompts, the right verdict): as drawn and with one attribute changed, and the same through a VAE.

    The skills come in turn. What lies off the ``lattice`` no autoencoder redraws.
    """
    prompts, rng = task.grammar.prompts("test", count, seed=seed), np.random.default_rng(seed)
    drawn = [task.draw(prompt.spec, rng, lattice=lattice) for prompt in prompts]
    changed = [task.grammar.change_one_attribute(scene, rng, lattice=lattice) for scene in drawn]
    for state, many, right in (("", drawn, True), ("_changed", changed, False)):
        media = torch.from_numpy(np.stack([task.render(scene) for scene in many]))
        yield f"renders{state}", media, prompts, right
        if vae is not None:
            yield f"reconstructions{state}", reconstruct(vae, media), prompts, right
