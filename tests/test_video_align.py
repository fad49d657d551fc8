"""VideoAlign on a small random checkpoint of the published layout: scores, preprocessing, sharing and refusals."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from otca.errors import InputError
from otca.plan import _reward_bytes
from otca.rewards import video_align
from otca.rewards.base import build_reward, find_reward
from otca.rewards.published import located
from otca.rewards.video_align import FPS, INSTRUCTION, WEIGHTS, frame_indices, load_network
from otca.types import Prompt

NAMES = ("videoalign_vq", "videoalign_mq", "videoalign_ta", "videoalign")
RANK, ALPHA = 4, 8
MEAN, STD = (0.5, -0.25, 0.125), (2.0, 0.5, 1.5)
CONFIG = {
    "model_type": "qwen2_vl",
    "torch_dtype": "bfloat16",
    "bos_token_id": None,
    "eos_token_id": None,
    "vocab_size": 700,  # larger than the tokenizer, as published; the checkpoint's embeddings have the tokenizer's size
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
OWN_TOKENS = [
    f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
]


def tiny_tokenizer():
    """Byte-level BPE like Qwen2's, with its special tokens after the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [INSTRUCTION], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(OWN_TOKENS)
    return tokenizer


def published(state, draw):
    """A Qwen2-VL's state as peft and transformers 4.45 name it, with a LoRA of its own."""
    out = {}
    for key, value in state.items():
        if key.startswith("model.visual."):
            out[f"base_model.model.{key.removeprefix('model.')}"] = value
        elif "_proj." in key:
            name, _, last = f"base_model.model.model.{key.removeprefix('model.language_model.')}".rpartition(".")
            out[f"{name}.base_layer.{last}"] = value
            if last == "weight":
                out[f"{name}.lora_A.default.weight"] = draw(RANK, value.shape[1])
                out[f"{name}.lora_B.default.weight"] = draw(value.shape[0], RANK)
        else:
            out[f"base_model.model.{key.replace('model.language_model.', 'model.')}"] = value
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files, small."""
    root = tmp_path_factory.mktemp("rewards")
    own = root / "videoalign"
    (own / WEIGHTS).parent.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(own / "tokenizer.json"))
    config = CONFIG | {
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
    }
    (own / "config.json").write_text(json.dumps(config))
    scales = {f"{d}_mean": m for d, m in zip(("VQ", "MQ", "TA"), MEAN)} | {f"{d}_std": s for d, s in zip(("VQ", "MQ", "TA"), STD)}
    (own / "model_config.json").write_text(
        json.dumps(
            {
                "data_config": {"fps": 2.0, "max_frame_pixels": 200704, "prompt_template_type": "detailed_special"},
                "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA},
                "inference_config": scales,
            }
        )
    )
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) / 4).bfloat16()

    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config | {"vocab_size": tokenizer.get_vocab_size() + 3}))
    state = {key: draw(*value.shape) + ("norm" in key and key.endswith("weight")) for key, value in model.state_dict().items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()  # tied, and yet written twice
    weights = published(state, draw) | {"base_model.model.rm_head.weight": draw(1, CONFIG["hidden_size"])}
    torch.save(weights, own / WEIGHTS)
    return root


@pytest.fixture
def rewards(folder):
    return {name: build_reward(name, "cpu", folder) for name in NAMES}


def media(videos=2, frames=9, height=40, width=60, seed=0):
    """Drifting gradients with noise, (B, F, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, frames)[:, None, None, None] * torch.linspace(0, 1, width)
    noise = torch.rand(videos, frames, 3, height, width, generator=generator)
    return (0.6 * ramp + 0.5 * noise).clamp(0, 1)


def prompts(*texts):
    return [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]


TEXTS = prompts("A red kite over the sea.", 'A {curly} cat says "hello" to 3 dogs, slowly; the camera pans left. ' * 3)


def test_scores_are_those_of_the_merged_network_through_transformers(rewards):
    """Of transformers' own classes, the LoRA merged by hand, one unpadded video at a time."""
    expected_B3 = torch.tensor([[0.747348, -1.974400, -0.707435], [0.802501, -2.152028, -1.190213]])
    found_B3 = torch.stack([rewards[name].score(media(), TEXTS) for name in NAMES[:3]], dim=1)
    assert found_B3.dtype == torch.float32 and (found_B3 - expected_B3).abs().max() < 3e-5
    assert torch.allclose(rewards["videoalign"].score(media(), TEXTS), expected_B3.sum(1), atol=1e-4)


def test_a_batch_is_its_videos(rewards, monkeypatch):
    videos, texts = media(5), [TEXTS[i % 2] for i in range(5)]
    monkeypatch.setattr(video_align, "CHUNK", 2)
    whole = rewards["videoalign"].score(videos, texts)
    single = torch.cat([rewards["videoalign"].score(videos[i : i + 1], texts[i : i + 1]) for i in range(5)])
    assert torch.allclose(whole, single, atol=1e-4)
    assert len(set(whole.tolist())) == 5


def test_frames_depend_on_the_stated_rate(rewards):
    """33 frames: at 16 a second 2.1 s, of which 4 frames are seen, at 8 a second 4.1 s and 8; each reward has its own rate."""
    videos, text = media(1, frames=33), TEXTS[:1]
    assert rewards["videoalign"].fps == FPS == 16
    rewards["videoalign"].fps = 8
    assert rewards["videoalign"].score(videos, text).item() == pytest.approx(0.993875 - 1.700007 - 1.072844, abs=1e-4)
    assert rewards["videoalign_vq"].score(videos, text).item() == pytest.approx(0.648451, abs=1e-4)


@pytest.mark.parametrize("rate", [0, True])
def test_a_rate_that_is_none_is_refused(rewards, rate):
    with pytest.raises(InputError, match="^reward 'videoalign_mq': fps is .*; it must be a positive number of frames a second$"):
        rewards["videoalign_mq"].fps = rate
        rewards["videoalign_mq"].score(media(1), TEXTS[:1])


def test_four_names_share_a_network_and_a_pass(rewards):
    judge = rewards["videoalign"]._judge
    assert all(reward._judge is judge for reward in rewards.values())
    calls = []
    judge.network.register_forward_hook(lambda *_: calls.append(1))
    videos = media(seed=3)
    column = {name: reward.score(videos, TEXTS) for name, reward in rewards.items()}
    assert len(calls) == 1
    assert torch.allclose(sum(column[name] for name in NAMES[:3]), column["videoalign"])
    again = rewards["videoalign"].score(videos, TEXTS[::-1])
    assert len(calls) == 2 and not torch.allclose(again, column["videoalign"])
    assert _reward_bytes(list(NAMES))[0] == _reward_bytes(["videoalign"])[0] == 4_600_000_000


@pytest.mark.usefixtures("short_collections")
def test_rewards_one_after_another_need_one_pass_and_one_loading(folder, tmp_path, monkeypatch):
    """As `score` does: all media by the first, which goes; then by the next. Only what has not been seen brings it back."""
    root, loads, passes, columns = copied(folder, tmp_path), [], [], {}

    def counted(*arguments):
        loads.append(1)
        network = load_network(*arguments)
        network.register_forward_hook(lambda *_: passes.append(1))
        return network

    monkeypatch.setattr(video_align, "load_network", counted)
    batches = [(media(2, seed=7), TEXTS), (media(1, seed=8), TEXTS[:1])]
    for name in NAMES:
        reward = build_reward(name, "cpu", root)
        columns[name] = torch.cat([reward.score(*batch) for batch in batches])
        del reward
        gc.collect()
        assert not [key for key in video_align._loaded if str(root) in str(key)]
    assert (len(loads), len(passes)) == (1, 2)
    assert torch.allclose(sum(columns[name] for name in NAMES[:3]), columns["videoalign"], atol=1e-6)
    assert torch.allclose(columns["videoalign"][2:], build_reward("videoalign", "cpu", folder).score(*batches[1]), atol=1e-6)
    loads.clear()
    again = build_reward("videoalign", "cpu", root)
    assert not loads
    again.score(media(1, seed=9), TEXTS[:1])
    assert len(loads) == 1


def test_ratings_of_other_weights_are_not_taken(folder, tmp_path):
    root, videos = copied(folder, tmp_path), media(1, seed=10)
    before = build_reward("videoalign", "cpu", root).score(videos, TEXTS[:1])
    changed_weights(lambda w: w.update({HEAD: -w[HEAD]}))(root / "videoalign")
    after = build_reward("videoalign", "cpu", root)
    assert (after.score(videos, TEXTS[:1]) - before).abs() > 0.01


def test_instruction_is_the_published_one():
    digest = hashlib.sha256(INSTRUCTION.encode()).hexdigest()  # of prompt_template.py, DETAILED_PROMPT_WITH_SPECIAL_TOKEN
    assert digest == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"


@pytest.mark.parametrize(
    ("frames", "fps", "expected"),
    [
        (81, 16, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),  # 10.125 frames, to the nearest even number
        (40, 16, [0, 13, 26, 39]),  # 5 is as near to 4 as to 6; the even half wins
        (9, 16, [0, 3, 5, 8]),  # 1.1, but at least 4
        (5, 8, [0, 1, 3, 4]),
        (3, 16, [0, 2]),  # at most the even number below 3
    ],
)
def test_frames_are_even_in_number_and_spread(frames, fps, expected):
    assert frame_indices(frames, fps) == expected
    assert len(frame_indices(16 * 60 * 10, 16)) == 768  # a long video is capped


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def changed_weights(change):
    def run(own):
        weights = torch.load(own / WEIGHTS, weights_only=True)
        change(weights)
        torch.save(weights, own / WEIGHTS)

    return run


def changed_json(change):
    def run(own):
        settings = json.loads((own / "model_config.json").read_text())
        change(settings)
        (own / "model_config.json").write_text(json.dumps(settings))

    return run


LORA = "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
HEAD = "base_model.model.rm_head.weight"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed_weights(lambda w: w.pop(LORA)), r"does not fit: .*layers.1.mlp.up_proj.lora_A.default.weight"),
        (changed_weights(lambda w: w.update(stray=torch.zeros(1))), "does not fit: .*stray"),
        (lambda own: (own / WEIGHTS).write_bytes(b"no weights"), "model.pth cannot be read"),
        (lambda own: (own / WEIGHTS).unlink(), "checkpoint-11352/model.pth of KlingTeam/VideoReward is neither in"),
        (lambda own: (own / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (changed_json(lambda c: c["data_config"].update(prompt_template_type="simple")), "the template 'simple'"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, tmp_path, spoil, said):
    root = copied(folder, tmp_path)
    spoil(root / "videoalign")
    with pytest.raises(InputError, match=said):
        build_reward("videoalign_mq", "cpu", root)


def test_prompts_and_media_that_it_cannot_take_are_refused(rewards):
    score = rewards["videoalign"].score
    with pytest.raises(InputError, match="the prompt 'A .* cat' holds a token of its instruction"):
        score(media(1), prompts("A <|VQ_reward|> cat"))
    with pytest.raises(InputError, match="at least 2 frames, not 1; use a reward for pictures"):
        score(media(1, frames=1), TEXTS[:1])
    with pytest.raises(InputError, match="cannot take frames so long"):
        score(media(1, frames=2, height=2, width=500), TEXTS[:1])


def test_the_four_names_look_in_one_folder(folder):
    for name in NAMES:
        card = find_reward(name).card
        assert located(card, folder) == {file.name: folder / "videoalign" / file.name for file in card.files}
    with pytest.raises(InputError, match="VideoReward is neither in elsewhere/videoalign nor in the hub's cache"):
        build_reward("videoalign_ta", "cpu", "elsewhere")
