"""Train and measure the small open_clip model (`otca/tasks/clip.py`)."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from otca.tasks.architecture import MAX_SEQUENCE_LENGTH, build_tokenizer
from otca.tasks.clip import EmbeddedClip
from otca.tasks.rendering import render
from otca.tasks.scenes import SIZE, SKILLS, Scene, captions, draw_scene, in_place, vocabulary
from reproduce.pretrain.drawings import random_emptiness, random_spec_scene, skill_specs
from reproduce.pretrain.loop import train
from reproduce.pretrain.vae import reconstruct


def clip_config(vocabulary_size: int) -> dict:
    """What goes into open_clip_config.json: a thin ModifiedResNet and a two-layer text transformer, 0.24 M parameters."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 6, "head_width": 48},
            "text_cfg": {
                "context_length": MAX_SEQUENCE_LENGTH,
                "vocab_size": vocabulary_size,
                "hf_tokenizer_name": "local",  # any name: open_clip then reads the tokenizer of the checkpoint's folder
                "width": 48,
                "heads": 4,
                "layers": 2,
                "mlp_ratio": 2.0,
                "pool_type": "eos",
                "eos_id": 1,
            },
        },
        "preprocess_cfg": {"size": SIZE, "mean": [0.8, 0.8, 0.8], "std": [0.25, 0.25, 0.25]},
    }


def pretrain_clip(
    folder: Path, steps: int, vae=None, batch: int = 64, learning_rate: float = 3e-3, seed: int = 0
) -> EmbeddedClip:
    """Returns the trained model; resumable (see `loop.train`). With a VAE, a quarter of the images are its reconstructions."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocabulary(), MAX_SEQUENCE_LENGTH)
    clip = EmbeddedClip.untrained(folder / "clip_start", clip_config(len(tokenizer)), tokenizer)
    model = clip.model

    def loss_at(step, rng, generator):
        lattice = vae is not None and rng.uniform() < 0.5  # which alone the autoencoder redraws
        scenes = scene_batch(rng, batch, lattice)
        texts = [str(rng.choice(captions(scene.spec))) for scene in scenes]
        image_BCHW = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
        if lattice:
            chosen = torch.rand(batch, generator=generator) < 0.5
            image_BCHW[chosen] = reconstruct(vae, image_BCHW[chosen])
        empty = torch.from_numpy(np.stack([random_emptiness(rng) for _ in range(batch // 8)]))
        image_ND = model.encode_image(clip.normalize(torch.cat([image_BCHW, empty])), normalize=True)
        text_BD = model.encode_text(clip.tokenizer(texts), normalize=True)
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        return contrastive_loss(scale * image_ND @ text_BD.T, also_true(scenes, [scene.spec for scene in scenes]))

    train("clip", {"clip": model}, loss_at, steps, learning_rate, folder, seed=seed)
    return clip


def contrastive_loss(logits_NB: torch.Tensor, also_true_BB: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of B matching pairs (the diagonal), with N - B more images that match no text.

    Other true pairs are left out, so that they are never negatives.
    """
    count = len(also_true_BB)
    target = torch.arange(count)
    other_BB = also_true_BB & ~torch.eye(count, dtype=torch.bool)
    other_NB = torch.cat([other_BB, torch.zeros(len(logits_NB) - count, count, dtype=torch.bool)])
    logits_NB = logits_NB.masked_fill(other_NB, float("-inf"))
    return (cross_entropy(logits_NB[:count], target) + cross_entropy(logits_NB.T, target)) / 2


# ----------------------------------------------------------------------------------------------------------------- data


def scene_batch(rng: np.random.Generator, count: int, lattice: bool = False) -> list[Scene]:
    """Drawings in neighbouring pairs (see `rival_spec`), which make hard negatives.

    More than half of the batches are of one of the two skills in which words alone tell nothing: the order of two objects
    and the pairing of colours; mixed batches teach them too slowly.
    """
    only = rng.choice([None, "position", "color_attr"], p=[0.43, 0.32, 0.25])
    scenes = []
    for _ in range(count // 2):
        scene = random_spec_scene(rng, only, lattice)
        scenes += [scene, draw_scene(rival_spec(scene.spec, rng), rng, lattice)]
    return scenes


def rival_spec(spec: dict, rng: np.random.Generator) -> dict:
    """Another spec of the same skill: mostly one of the same shapes and colours (swapped, turned, recounted)."""
    specs = skill_specs(spec["skill"])
    rivals = [other for other in _by_words()[_words(spec)] if other != spec]
    if rivals and rng.uniform() < 0.7:
        return rivals[rng.integers(len(rivals))]
    return specs[rng.integers(len(specs))]


@functools.cache
def _by_words() -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for spec in itertools.chain.from_iterable(skill_specs(skill) for skill in SKILLS):
        groups.setdefault(_words(spec), []).append(spec)
    return groups


def _words(spec: dict) -> tuple:
    return (spec["skill"], *(frozenset(str(o[key]) for o in spec["objects"]) for key in ("shape", "color")))


def also_true(scenes: list[Scene], specs: list[dict]) -> torch.Tensor:
    """Which scene satisfies which spec, whatever it was drawn for: bool (scenes, specs)."""
    return torch.tensor([[_satisfies(scene, spec) for spec in specs] for scene in scenes])


def _satisfies(scene: Scene, spec: dict) -> bool:
    wanted = spec["objects"]
    if sorted(o.shape for o in scene.objects) != sorted(o["shape"] for o in wanted):
        return False
    return any(
        all(o.shape == w["shape"] and w["color"] in (None, o.color) for o, w in zip(order, wanted))
        and (spec["relation"] is None or _stands(spec["relation"], *order))
        and in_place(spec["place"], order[0].x, order[0].y)
        for order in itertools.permutations(scene.objects)
    )


def _stands(relation: str, a, b) -> bool:
    along, across = {"left of": (b.x - a.x, b.y - a.y), "above": (b.y - a.y, b.x - a.x)}[relation]
    return along > abs(across)


# ------------------------------------------------------------------------------------------------------------- measures


@torch.no_grad()
def retrieval_accuracy(clip: EmbeddedClip, count: int, vae=None, pool: int = 128, seed: int = 10**6) -> dict[str, float]:
    """Caption → image retrieval among ``pool`` fresh drawings: share of captions whose best image is true to them.

    By skill and ``overall``, ``count`` captions in all; skills evenly. ``chance`` is the share of true images in a pool.
    With a VAE the images are its reconstructions.
    """
    rng = np.random.default_rng(seed)
    right: dict[str, list[float]] = {skill: [] for skill in (*SKILLS, "chance")}
    for first in range(0, count, pool):
        skills = [SKILLS[i % len(SKILLS)] for i in range(first, min(first + pool, count))]
        scenes = [random_spec_scene(rng, skill, lattice=vae is not None) for skill in skills]
        texts = [str(rng.choice(captions(scene.spec))) for scene in scenes]
        image = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
        image = image if vae is None else reconstruct(vae, image)
        best = (clip.text_features(texts) @ clip.image_features(image[:, None]).T).argmax(1)
        true = also_true(scenes, [scene.spec for scene in scenes])
        right["chance"] += true.float().mean(0).tolist()
        for j, scene in enumerate(scenes):
            right[scene.spec["skill"]].append(float(true[best[j], j]))
    overall = [r for skill in SKILLS for r in right[skill]]
    return {name: float(np.mean(values)) for name, values in right.items()} | {"overall": float(np.mean(overall))}
