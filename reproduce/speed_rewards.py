"""Speed of the published rewards: `python -m reproduce.speed_rewards` → results/speed/rewards.csv. A benchmark, not a test.

Every reward gets random weights on the smallest published tower, ViT-B/32, in its true architecture, whatever tower its own
weights have, and scores the same pictures; efficiency = time of the bare forward passes on ready inputs ÷ time of `score`,
pass by pass in turn, on one thread. OCR reads rendered words by its own models; it has no forward pass of torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import pandas as pd
import torch

from eval.evaluate import write_rows
from otca.rewards import clip, pick_score
from otca.rewards.base import build_reward
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.rewards.published import PublishedReward, five_layers
from otca.rewards.tower import CONFIG, WEIGHTS, Tower
from otca.types import Prompt
from reproduce.costs import hardware

TOWER = "ViT-B-32-quickgelu"
SIZES = (256, 512)
"""Pixels a side of the pictures."""
PICTURES, PROMPTS, ROUNDS = 16, 4, 3
GOAL = 0.90
"""Efficiency asked for."""


def random_rewards(folder: Path) -> dict[str, PublishedReward]:
    """The rewards on CLIP towers, each from files that this makes in ``folder``."""
    device = torch.device("cpu")
    architecture = open_clip.get_model_config(TOWER)
    model, preprocess = open_clip.CLIP(**architecture), {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic"}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": architecture, "preprocess_cfg": preprocess}))
    files = {CONFIG: folder / CONFIG, WEIGHTS[0]: folder / WEIGHTS[0]}
    _save(model.state_dict(), files[WEIGHTS[0]])
    head = {clip.HEAD: folder / clip.HEAD}
    torch.save(torch.nn.ModuleDict({"layers": five_layers(architecture["embed_dim"])}).state_dict(), head[clip.HEAD])
    small = type("HPSv2", (clip.HPSv2,), {"architecture": architecture})
    torch.save({"state_dict": model.state_dict()}, folder / clip.HPS)
    return {
        "clip_b32": clip.ClipScoreB32(files, device),
        "hpsv2": small({clip.HPS: folder / clip.HPS}, device),
        "aesthetic_v2": clip.AestheticV2(files | head, device),
        "pickscore": pick_score.PickScore(_pick_score_files(folder), device),
    }


def _pick_score_files(folder: Path) -> dict[str, Path]:
    """A random CLIPModel of transformers of the tower's size, and CLIP's own vocabulary as open_clip ships it."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(projection_dim=512)  # its defaults are ViT-B/32
    paths = {name: folder / name for name in (pick_score.CONFIG, pick_score.WEIGHTS, pick_score.VOCABULARY, pick_score.MERGES)}
    paths[pick_score.CONFIG].write_text(json.dumps(config.to_dict()))
    _save(CLIPModel(config).state_dict(), paths[pick_score.WEIGHTS])
    own = open_clip.tokenizer.SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # as OpenAI's own files name them
    paths[pick_score.VOCABULARY].write_text(json.dumps({ends.get(token, token): i for token, i in own.encoder.items()}))
    paths[pick_score.MERGES].write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in own.bpe_ranks)]))
    return paths


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)


def bare_forward(reward: PublishedReward, media_NCHW: torch.Tensor, texts: list[str]) -> Callable[[], None]:
    """The networks of one call of `score` on inputs that are ready: pictures in the reward's own chunks, each text once."""
    if isinstance(reward, pick_score.PickScore):
        pixels, model = reward.preprocess(media_NCHW), reward.model
        tokens = reward.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return lambda: (model.get_image_features(pixel_values=pixels), model.get_text_features(**tokens))
    tower: Tower = reward.tower
    pixels, token_NL = tower.preprocess(media_NCHW), tower.tokenize(texts)
    if isinstance(reward, clip.AestheticV2):
        return lambda: tower.model.encode_image(pixels)
    return lambda: (tower.model.encode_image(pixels), tower.model.encode_text(token_NL))


def measured(name: str, reward: PublishedReward, size: int) -> dict[str, object]:
    """One row: pictures a second of a reward, and its efficiency."""
    media_BFCHW = torch.rand(PICTURES, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(str(i), f'a sign in street {i % PROMPTS} that says "STOP"') for i in range(PICTURES)]
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    bare = bare_forward(reward, media_BFCHW[:, 0], texts) if name != "ocr" else None
    whole, forward = [], []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first warms up
            whole.append(_seconds(lambda: reward.score(media_BFCHW, prompts)))
            forward.append(_seconds(bare) if bare else float("nan"))
    seconds = statistics.median(whole[1:])
    ratio = statistics.median(b / w for b, w in zip(forward[1:], whole[1:]))
    row = {"reward": name, "network": TOWER if bare else "PP-OCR small", "side": size, "images_per_second": PICTURES / seconds}
    return row | {"efficiency": ratio, "goal": GOAL if bare else None, "hardware": hardware()}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.speed_rewards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/speed/rewards.csv"), help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rewards = random_rewards(Path(folder)) | {"ocr": build_reward("ocr")}
        rows = pd.DataFrame([measured(name, reward, size) for name, reward in rewards.items() for size in SIZES])
    print(rows.drop(columns="hardware").to_string(index=False, float_format="%.3f"))
    write_rows(rows, args.out)


if __name__ == "__main__":
    main()
