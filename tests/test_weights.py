"""Weights of other trainers: LoRAs and transformers as diffusers, peft, Flow-GRPO and DanceGRPO leave them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open

from otca.__main__ import main
from otca.config import PolicyConfig
from otca.errors import InputError
from otca.models.base import build_policy
from otca.models.flux import FluxPolicy
from otca.models.sd3 import Sd3Policy
from otca.models.wan import WanPolicy
from otca.models.weights import LORA_FILE
from otca.sampling import sigmas_S
from tests.test_sd3 import LENGTH, stock

LORA = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, "target_modules": list(Sd3Policy.lora_targets)}


def image_of(pipeline):
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    return stock(pipeline, latents, sigmas_S(3, 3.0), 1.0)


@pytest.fixture(scope="module")
def adapted(untrained_sd3):
    """A pipeline with an active LoRA of rank 4, alpha 12 and random weights, and its transformer as a PeftModel."""
    torch.manual_seed(3)
    pipeline = StableDiffusion3Pipeline.from_pretrained(untrained_sd3)
    pipeline.set_progress_bar_config(disable=True)
    model = get_peft_model(pipeline.transformer, LoraConfig(**LORA))
    return pipeline, model


def test_loras_as_flow_grpo_saves_them_are_merged(untrained_sd3, adapted, tmp_path):
    pipeline, model = adapted
    model.save_pretrained(tmp_path / "lora")
    policy = build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path / "lora"), max_sequence_length=LENGTH))
    torch.testing.assert_close(image_of(policy.pipeline), image_of(pipeline), rtol=0, atol=1e-5)
    assert not any("lora" in name for name, _ in policy.pipeline.transformer.named_parameters())
    assert policy.protocol["weights"] == str(tmp_path / "lora")
    plain = build_policy(PolicyConfig(path=untrained_sd3, max_sequence_length=LENGTH))
    assert (image_of(policy.pipeline) - image_of(plain.pipeline)).abs().max() > 1e-3
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no adapter_model.safetensors there"):
        build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path / "lora")))


def save_as_diffusers_does(model, folder, loader=StableDiffusion3Pipeline, metadata=True):
    loader.save_lora_weights(
        folder,
        transformer_lora_layers={
            key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()
        },
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict() if metadata else None,
    )


def test_loras_as_diffusers_saves_them_are_merged_with_their_alpha(untrained_sd3, adapted, tmp_path):
    pipeline, model = adapted
    save_as_diffusers_does(model, tmp_path)
    policy = build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path), max_sequence_length=LENGTH))
    torch.testing.assert_close(image_of(policy.pipeline), image_of(pipeline), rtol=0, atol=1e-5)


@pytest.mark.parametrize("below", ["", "transformer"])
def test_whole_transformers_replace_ours(untrained_sd3, tmp_path, below):
    """DanceGRPO saves the transformer's folder itself, runs here a folder with `transformer/`."""
    torch.manual_seed(5)
    pipeline = StableDiffusion3Pipeline.from_pretrained(untrained_sd3)
    pipeline.set_progress_bar_config(disable=True)
    for p in pipeline.transformer.parameters():
        p.data += 0.02 * torch.randn_like(p)
    pipeline.transformer.save_pretrained(tmp_path / below)
    policy = build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path), max_sequence_length=LENGTH))
    assert torch.equal(image_of(policy.pipeline), image_of(pipeline)) and policy.trainable_parameters()
    rough = build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path), precision="bf16", tuning="lora"))
    assert rough.pipeline.transformer.transformer_blocks[0].norm1.linear.weight.dtype == torch.bfloat16


def test_weights_that_are_none_are_refused(untrained_sd3, tmp_path):
    with pytest.raises(InputError, match="policy.weights .* no pytorch_lora_weights.safetensors, adapter_config.json"):
        build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path)))


def test_loras_as_dance_grpo_saves_them_have_their_alpha_beside_them(untrained_sd3, adapted, tmp_path, caplog):
    """No metadata in the file; alpha 12 of rank 4 stands in lora_config.json. Without that diffusers takes alpha = rank."""
    pipeline, model = adapted
    save_as_diffusers_does(model, tmp_path, metadata=False)
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        assert "lora_adapter_metadata" not in (file.metadata() or {})
    beside = tmp_path / "lora_config.json"
    beside.write_text(json.dumps({"step": 3, "lora_params": {"lora_rank": 4, "lora_alpha": 12, "target_modules": ["to_q"]}}))
    config = PolicyConfig(path=untrained_sd3, weights=str(tmp_path), max_sequence_length=LENGTH)
    dance, plain = build_policy(config).pipeline, StableDiffusion3Pipeline.from_pretrained(untrained_sd3)
    torch.testing.assert_close(image_of(dance), image_of(pipeline), rtol=0, atol=1e-5)
    assert "records no alpha" not in caplog.text
    beside.unlink()
    weak = build_policy(config).pipeline
    assert "records no alpha; it is taken to be the rank" in caplog.text
    name = "transformer_blocks.0.attn.to_q.weight"
    moved = [p.transformer.get_parameter(name) - plain.transformer.get_parameter(name) for p in (dance, weak)]
    torch.testing.assert_close(moved[0], 3 * moved[1], rtol=1e-3, atol=1e-6)
    beside.write_text('{"lora_params": {}}')
    with pytest.raises(InputError, match="no lora_params.lora_alpha there"):
        build_policy(config)


def test_a_model_of_two_experts_needs_weights_of_each(untrained_experts, tmp_path):
    """A LoRA or a transformer that does not say of which expert it is would land in one, or in both."""
    settings = {"path": untrained_experts, "frames": 5, "max_sequence_length": LENGTH}
    plain = build_policy(PolicyConfig(**settings)).pipeline
    loras = {}
    for name in ("transformer", "transformer_2"):
        torch.manual_seed(len(name))
        network = type(getattr(plain, name)).from_pretrained(f"{untrained_experts}/{name}")
        loras[name] = get_peft_model(network, LoraConfig(**LORA | {"target_modules": list(WanPolicy.lora_targets)}))
        loras[name].save_pretrained(tmp_path / "peft" / name)
        network.save_pretrained(tmp_path / "whole" / name)
    both = build_policy(PolicyConfig(**settings, weights=str(tmp_path / "peft"))).pipeline
    for name, lora in loras.items():
        merged = lora.merge_and_unload().state_dict()
        for key, value in getattr(both, name).state_dict().items():
            torch.testing.assert_close(value, merged[key], rtol=0, atol=1e-6)
    for kind in ("peft", "whole"):
        bare = tmp_path / f"bare-{kind}"
        shutil.copytree(tmp_path / kind / "transformer", bare)
        with pytest.raises(InputError, match="one network, but the model has 2 .*; give each its own in a folder of its name"):
            build_policy(PolicyConfig(**settings, weights=str(bare)))
        shutil.rmtree(tmp_path / kind / "transformer_2")
        with pytest.raises(InputError, match="nothing for transformer_2 there"):
            build_policy(PolicyConfig(**settings, weights=str(tmp_path / kind)))


LAYOUTS = ("peft", "flow_grpo", "diffusers", "dance_grpo", "whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_commands_sample_and_score_with_them(untrained_pipeline, tmp_path, layout, capsys):
    """`sample` with ``--policy.weights`` draws what stock diffusers draws of the same merged FLUX; `score` reads its media."""
    torch.manual_seed(3)
    stock_pipeline, folder = FluxPipeline.from_pretrained(untrained_pipeline), tmp_path / "weights"
    config = LoraConfig(**LORA | {"target_modules": list(FluxPolicy.lora_targets)})
    model = get_peft_model(stock_pipeline.transformer, config)
    if layout in ("peft", "flow_grpo"):
        model.save_pretrained(folder / ("lora" if layout == "flow_grpo" else ""))
    elif layout in ("diffusers", "dance_grpo"):
        save_as_diffusers_does(model, folder, FluxPipeline, metadata=layout == "diffusers")
        if layout == "dance_grpo":
            (folder / "lora_config.json").write_text(json.dumps({"lora_params": {"lora_rank": 4, "lora_alpha": 12}}))
    merged = model.merge_and_unload()
    merged.save_pretrained(folder if layout == "whole" else tmp_path / "merged")
    made = {}
    for name, weights in {"given": folder, "merged": folder if layout == "whole" else tmp_path / "merged", "none": ""}.items():
        out = tmp_path / name
        sizes = ["--eval.prompts=1", "--eval.samples_per_prompt=2", "--eval.steps=2", "--policy.max_sequence_length=10"]
        places = [f"--policy.path={untrained_pipeline}", f"--policy.weights={weights}", f"--out={out}", "--device=cpu"]
        assert main(["sample", *sizes, *places]) == 0, capsys.readouterr().err
        scored = out / "scores.csv"
        rest = ["--rewards=tests.test_baselines:Red", f"--prompts={out / 'prompts.jsonl'}", f"--out={scored}"]
        assert main(["score", f"--images={out}", *rest]) == 0, capsys.readouterr().err
        pixels = np.stack([np.asarray(Image.open(file), dtype=int) for file in sorted(out.glob("*.png"))])
        np.testing.assert_allclose(pd.read_csv(scored)["red"], pixels[..., 0].mean((1, 2)) / 255, atol=1e-5)
        made[name] = pixels
    assert abs(made["given"] - made["merged"]).max() <= 1 and abs(made["given"] - made["none"]).max() > 3
