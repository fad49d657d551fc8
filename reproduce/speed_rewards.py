"""Speed of the published rewards: `python -m reproduce.speed_rewards` → results/speed/rewards.csv. A benchmark, not a test.

Every reward has random weights in its true architecture, in files that it reads as its own; the networks are small enough for one
core, and their rows say how small. All score the same signs, with the word on them in the prompt; videos drift. Efficiency = time
of the bare forward passes on ready inputs ÷ time of `score`, pass by pass in turn, on one thread. OCR reads the signs by its own
models; it has no forward pass of torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from eval.evaluate import write_rows
from otca.rewards import clip, image_reward, pick_score, video_align
from otca.rewards.base import build_reward
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.rewards.published import PublishedReward, five_layers
from otca.rewards.tower import CONFIG, WEIGHTS, Tower
from otca.rewards.video_align_network import RENAMED, Network, read_config
from otca.rewards.video_align_prompt import INSTRUCTION, PAD_TOKEN, TEMPLATE, VIDEO_TOKEN
from otca.types import Prompt
from reproduce.costs import hardware

TOWER = "ViT-B-32-quickgelu"
"""The smallest published CLIP, in the place of whatever tower a reward has."""
BLIP_VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
BLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
"""ImageReward's picture encoder (ViT-S/16 instead of ViT-L/16) and its text encoder (BERT-base, as published)."""
QWEN = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN_VISION = {"depth": 4, "embed_dim": 128, "num_heads": 2, "mlp_ratio": 4}
"""VideoAlign's language model (published: 1536 wide, 28 layers) and its vision tower (1280 wide, 32 layers)."""

SIZES = (256, 512)
"""Pixels a side of the media."""
PICTURES, VIDEOS, FRAMES, ROUNDS = 16, 2, 16, 3
WORDS = ("STOP", "EXIT", "OPEN", "SALE")
GOAL = 0.90
"""Efficiency asked for."""


# -------------------------------------------------------------------------------------------------------------- rewards


def clip_rewards(folder: Path) -> dict[str, PublishedReward]:
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


def blip_reward(folder: Path) -> image_reward.ImageReward:
    """ImageReward with `BLIP_VISION` and `BLIP_TEXT`, and a vocabulary of BERT's size whose words are numbers."""
    small = type("ImageReward", (image_reward.ImageReward,), {"vision": image_reward.ImageReward.vision | BLIP_VISION})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *map(str, range(30_491))]
    text = {"vocab_size": len(words) + 2, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    text |= BLIP_TEXT | {"pad_token_id": 0}
    state = image_reward.build_network(small.vision, text).state_dict()
    files = {name: folder / name for name in ("ImageReward.pt", "med_config.json", "vocab.txt")}
    torch.save({_published_name(key): value for key, value in state.items()}, files["ImageReward.pt"])
    files["med_config.json"].write_text(json.dumps(text))
    files["vocab.txt"].write_text("\n".join(words) + "\n")
    return small(files, torch.device("cpu"))


def _published_name(key: str) -> str:
    """Of a tensor of ImageReward's, its name in the file."""
    for theirs, ours in image_reward.RENAMED if key.startswith("blip.visual_encoder.") else ():
        key = key.replace(ours, theirs)
    return key


def qwen_reward(folder: Path) -> video_align.TextAlignment:
    """VideoAlign with `QWEN` and `QWEN_VISION`; its tokenizer knows the words of the published instruction."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    files = {file.name: folder / file.name for file in video_align.FILES}
    files[video_align.WEIGHTS].parent.mkdir()
    tokenizer, bytewise = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = bytewise
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=bytewise.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([INSTRUCTION], trainer)
    marks = ("im_start", "im_end", "vision_start", "vision_end", "image_pad")
    tokenizer.add_special_tokens([PAD_TOKEN, *(f"<|{mark}|>" for mark in marks), VIDEO_TOKEN])
    tokenizer.save(str(files["tokenizer.json"]))
    heads = QWEN["hidden_size"] // QWEN["num_attention_heads"] // 2  # frequencies, which the three axes share
    config = QWEN | {
        "model_type": "qwen2_vl",
        "bos_token_id": None,
        "eos_token_id": None,
        "vocab_size": tokenizer.get_vocab_size() + 3,  # its own and the three of the rewards
        "rope_scaling": {"type": "mrope", "mrope_section": [heads - 2 * (heads * 3 // 8), heads * 3 // 8, heads * 3 // 8]},
        "tie_word_embeddings": True,
        "video_token_id": tokenizer.token_to_id(VIDEO_TOKEN),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "vision_config": QWEN_VISION | {"hidden_size": QWEN["hidden_size"], "patch_size": 14, "temporal_patch_size": 2},
    }
    files["config.json"].write_text(json.dumps(config))
    lora = {"lora_r": 64, "lora_alpha": 128}
    settings = {"fps": 2.0, "max_frame_pixels": 200_704, "prompt_template_type": TEMPLATE}
    scales = {name: float(name.endswith("std")) for name in video_align.SCALES}
    parts = {"peft_lora_config": lora, "data_config": settings, "inference_config": scales}
    files["model_config.json"].write_text(json.dumps(parts))
    state = Network(read_config("videoalign", files["config.json"]), *lora.values()).state_dict()
    torch.save({_of_peft(key): value for key, value in state.items()}, files[video_align.WEIGHTS])
    return video_align.TextAlignment(files, torch.device("cpu"))


def _of_peft(key: str) -> str:
    """Of a tensor of VideoAlign's, its name in the file."""
    return next((old + key.removeprefix(new) for old, new in RENAMED.items() if key.startswith(new)), key)


# --------------------------------------------------------------------------------------------------------- measurements


def signs(count: int, frames: int, side: int) -> torch.Tensor:
    """Black words on a pale ground, drifting by a hundredth of the side a frame: (count, frames, 3, side, side) in [0, 1]."""
    font = ImageFont.load_default(side / 5)
    out = []
    for index in range(count):
        image = Image.new("RGB", (side, side), (235, 240, 220))
        ImageDraw.Draw(image).text((side / 2, side / 2), WORDS[index % len(WORDS)], fill="black", font=font, anchor="mm")
        still_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        out.append(torch.stack([still_CHW.roll(frame * side // 100, dims=2) for frame in range(frames)]))
    return torch.stack(out)


def said(count: int) -> list[Prompt]:
    """What the signs say."""
    return [Prompt(str(i), f'a sign that says "{WORDS[i % len(WORDS)]}"') for i in range(count)]


def bare_forward(reward: PublishedReward, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> Callable[[], object] | None:
    """The networks of one call of `score` on inputs that are ready: pictures in the reward's own chunks, each text once."""
    if isinstance(reward, image_reward.ImageReward):
        network = reward.network
        parts = (network["blip"]["visual_encoder"], network["blip"]["text_encoder"], network["mlp"]["layers"])
        return replayed(parts, lambda: reward.score(media_BFCHW, prompts))
    if isinstance(reward, video_align.TextAlignment):
        return replayed([reward._judge.network], lambda: reward.score(media_BFCHW, prompts))
    media_NCHW, texts = media_BFCHW[:, 0], list(dict.fromkeys(prompt.text for prompt in prompts))
    if isinstance(reward, pick_score.PickScore):
        pixels, model = reward.preprocess(media_NCHW), reward.model
        tokens = reward.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return lambda: (model.get_image_features(pixel_values=pixels), model.get_text_features(**tokens))
    tower: Tower | None = getattr(reward, "tower", None)
    if tower is None:
        return None
    pixels, token_NL = tower.preprocess(media_NCHW), tower.tokenize(texts)
    if isinstance(reward, clip.AestheticV2):
        return lambda: tower.model.encode_image(pixels)
    return lambda: (tower.model.encode_image(pixels), tower.model.encode_text(token_NL))


def replayed(parts: Sequence[torch.nn.Module], score: Callable[[], object]) -> Callable[[], object]:
    """The calls of these modules that ``score`` makes, to be made again by themselves."""
    calls: list[tuple[torch.nn.Module, tuple, dict]] = []

    def note(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append((module, args, kwargs))

    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
    score()
    for hook in hooks:
        hook.remove()
    return lambda: [module(*args, **kwargs) for module, args, kwargs in calls]


def measured(name: str, network: str, reward: PublishedReward, side: int) -> dict[str, object]:
    """One row: media a second of a reward, frames of one counted as pictures, and its efficiency."""
    count, frames = (VIDEOS, FRAMES) if reward.card.modality == "video" else (PICTURES, 1)
    media_BFCHW, prompts = signs(count, frames, side), said(count)
    whole, forward = [], []
    with torch.inference_mode():
        bare = bare_forward(reward, media_BFCHW, prompts)
        for number in range(ROUNDS + 1):  # the first warms up
            media_BFCHW[:, :, :, 0, 0] = number / (ROUNDS + 1)  # or VideoAlign would give its last ratings again
            whole.append(_seconds(lambda: reward.score(media_BFCHW, prompts)))
            forward.append(_seconds(bare) if bare else float("nan"))
    seconds = statistics.median(whole[1:])
    ratio = statistics.median(b / w for b, w in zip(forward[1:], whole[1:]))
    row = {"reward": name, "network": network, "side": side, "frames": frames, "images_per_second": count * frames / seconds}
    return row | {"efficiency": ratio, "goal": GOAL if bare else None, "hardware": f"{hardware()}, 1 thread"}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.speed_rewards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/speed/rewards.csv"), help="file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blip, qwen = (f"{sizes['hidden_size']} wide, {sizes['num_hidden_layers']} layers" for sizes in (BLIP_VISION, QWEN))
    with tempfile.TemporaryDirectory() as folder:
        rewards = [(name, TOWER, reward) for name, reward in clip_rewards(Path(folder)).items()]
        rewards.append(("image_reward", f"BLIP, picture encoder {blip}", blip_reward(Path(folder))))
        rewards.append(("videoalign_ta", f"Qwen2-VL, {qwen}", qwen_reward(Path(folder))))
        rewards.append(("ocr", "PP-OCR small", build_reward("ocr", timeout=0)))
        rows = pd.DataFrame([measured(*reward, side) for reward in rewards for side in SIZES])
    print(rows.drop(columns="hardware").to_string(index=False, float_format="%.3f"))
    write_rows(rows, args.out)


if __name__ == "__main__":
    main()
