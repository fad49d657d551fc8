"""Weights of other trainers: LoRAs and transformers as diffusers, peft, Flow-GRPO and DanceGRPO leave them."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from otca.config import PolicyConfig
from otca.errors import InputError
from otca.files import EMBEDDED
from otca.models.base import build_policy
from otca.models.sd3 import Sd3Policy
from otca.models.wan import WanPolicy
from otca.models.weights import LORA_FILE, _scale, apply_weights

LENGTH = 10
LORA = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, "target_modules": list(Sd3Policy.lora_targets)}


def image_of(pipeline):
    """What the stock pipeline draws in three steps."""
    latents, size = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), {"height": 64, "width": 64}
    given = {"latents": latents, "num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": LENGTH}
    return pipeline(prompt=["a red circle"], output_type="pt", **size, **given).images


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
    with pytest.raises(InputError, match="no safetensors file there"):
        build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path / "lora")))


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
    torch.testing.assert_close(image_of(policy.pipeline), image_of(pipeline), rtol=0, atol=1e-5)
    assert policy.trainable_parameters()
    rough = build_policy(PolicyConfig(path=untrained_sd3, weights=str(tmp_path), precision="bf16", tuning="lora"))
    assert rough.pipeline.transformer.transformer_blocks[0].norm1.linear.weight.dtype == torch.bfloat16


def test_loras_as_dance_grpo_saves_them_have_their_alpha_beside_them(untrained_sd3, adapted, tmp_path, caplog):
    """No metadata in the file; alpha 12 of rank 4 stands in lora_config.json. Without that diffusers takes alpha = rank."""
    pipeline, model = adapted
    layers = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
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
        with pytest.raises(InputError, match="one network, but the model has .*; give each its own in a folder of its name"):
            build_policy(PolicyConfig(**settings, weights=str(bare)))
        shutil.rmtree(tmp_path / kind / "transformer_2")
        with pytest.raises(InputError, match="nothing for transformer_2 there"):
            build_policy(PolicyConfig(**settings, weights=str(tmp_path / kind)))


# ------------------------------------------------------------------------------------------ files of other trainers, damaged ones

TARGETS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_k")
ENCODED = "encoder.layers.0.self_attn.v_proj"


def pairs(network, modules, seed=0) -> dict[str, torch.Tensor]:
    """Random A and B of rank 4 for each module, by peft's bare names."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for module in modules:
        wide, narrow = network.get_submodule(module).weight.shape
        out[f"{module}.lora_A.weight"] = 0.3 * torch.randn(4, narrow, generator=generator)
        out[f"{module}.lora_B.weight"] = 0.3 * torch.randn(wide, 4, generator=generator)
    return out


def moved(network, before, lora, scale) -> None:
    """Every weight is what it was, plus alpha/r·B·A where the LoRA has a pair."""
    for key, value in network.state_dict().items():
        module = key.removesuffix(".weight")
        halves = [lora.get(f"{module}.lora_{half}.weight") for half in "AB"]
        expected = before[key] if halves[0] is None else before[key] + scale * halves[1] @ halves[0]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.fixture
def flux(untrained_pipeline):
    return FluxPipeline.from_pretrained(untrained_pipeline)


@pytest.mark.parametrize(
    "wrapper, beside",
    [("", "peft"), ("transformer.", "alphas"), ("diffusion_model.", "bare file"), ("module._orig_mod.base_model.model.", "peft")],
)
def test_wrapped_loras_give_w_plus_scaled_b_a(flux, tmp_path, wrapper, beside):
    before = {key: value.clone() for key, value in flux.transformer.state_dict().items()}
    lora = pairs(flux.transformer, TARGETS)
    tensors, scale, file = {wrapper + key: value for key, value in lora.items()}, 1.0, tmp_path / "mine.safetensors"
    if beside == "peft":
        file, scale = tmp_path / "adapter_model.safetensors", 2.0
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    elif beside == "alphas":
        tensors |= {f"{wrapper}{module}.alpha": torch.tensor(6.0) for module in TARGETS}
        scale = 1.5
    save_file(tensors, file)
    apply_weights(flux, ["transformer"], str(file if beside == "bare file" else tmp_path))
    moved(flux.transformer, before, lora, scale)


def test_the_names_of_other_trainers_are_converted_by_diffusers(flux, tmp_path):
    """kohya's: one module of a single block, alpha 2 of rank 4."""
    before = flux.transformer.state_dict()["single_transformer_blocks.1.proj_out.weight"].clone()
    lora = pairs(flux.transformer, ["single_transformer_blocks.1.proj_out"])
    down, up = lora.values()
    name = "lora_unet_single_blocks_1_linear2"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)},
        tmp_path / "a.safetensors",
    )
    apply_weights(flux, ["transformer"], str(tmp_path))
    after = flux.transformer.state_dict()["single_transformer_blocks.1.proj_out.weight"]
    torch.testing.assert_close(after, before + 0.5 * up @ down, rtol=0, atol=1e-6)


def test_each_component_has_its_own_alpha_as_diffusers_records_it(flux, tmp_path):
    lora, text = pairs(flux.transformer, TARGETS), pairs(flux.text_encoder, [ENCODED], seed=1)
    before, encoded = ({k: v.clone() for k, v in net.state_dict().items()} for net in (flux.transformer, flux.text_encoder))
    alphas = {f"{part}_lora_adapter_metadata": {"lora_alpha": n} for part, n in (("transformer", 12), ("text_encoder", 8))}
    flux.save_lora_weights(tmp_path, lora, text, **alphas)
    apply_weights(flux, ["transformer"], str(tmp_path))
    moved(flux.transformer, before, lora, 3.0)
    moved(flux.text_encoder, encoded, text, 2.0)


@pytest.mark.parametrize(
    "first, second, told",
    [
        ("{}.default.weight", "{}.old.weight", "is the second [AB] of .*; it holds two adapters, or two networks"),
        ("transformer.{}.weight", "transformer_2.{}.weight", "it has weights of transformer_2, and the model has one network"),
    ],
)
def test_a_file_of_two_adapters_or_networks_is_refused(flux, tmp_path, first, second, told):
    """DiffusionNFT's policy keeps two adapters; of two the last one would count."""
    tensors = {}
    for seed, name in enumerate([first, second]):
        lora = pairs(flux.transformer, TARGETS, seed=seed)
        tensors |= {name.format(key.removesuffix(".weight")): value for key, value in lora.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=told):
        apply_weights(flux, ["transformer"], str(tmp_path))
    whole = flux.transformer.state_dict()
    save_file(whole | {f"module.{key}": 2 * value for key, value in whole.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="tensors under two names"):
        apply_weights(flux, ["transformer"], str(tmp_path))


def test_parts_for_text_encoders_are_merged_or_refused_by_name(flux, tmp_path, untrained_pipeline):
    lora, text = pairs(flux.transformer, TARGETS), pairs(flux.text_encoder, [ENCODED], seed=1)
    before = {key: value.clone() for key, value in flux.text_encoder.state_dict().items()}
    tensors = {f"transformer.{key}": value for key, value in lora.items()}
    save_file(tensors | {f"text_encoder.text_model.{key}": value for key, value in text.items()}, tmp_path / LORA_FILE)
    apply_weights(flux, ["transformer"], str(tmp_path))
    moved(flux.text_encoder, before, text, 1.0)
    config = PolicyConfig(path=untrained_pipeline, weights=str(tmp_path), prompt_cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="a part of the LoRA is for text_encoder .* which is not loaded here"):
        build_policy(config)


def deeper(lora):
    lora["transformer_blocks.99.attn.to_q.lora_A.weight"] = torch.zeros(4, 8)


def lone(lora):
    del lora[f"{TARGETS[1]}.lora_B.weight"]


def nan(lora):
    lora[f"{TARGETS[0]}.lora_A.weight"][1, 2] = float("nan")


def control(lora):
    lora |= {"x_embedder.lora_A.weight": torch.ones(4, 999), "x_embedder.lora_B.weight": torch.ones(8, 4)}


def other(name):
    return lambda lora: lora.update({f"{TARGETS[0]}.{name}": torch.ones(8)})


@pytest.mark.parametrize(
    "damage, said",
    [
        (deeper, r"has transformer_blocks.99.attn.to_q.lora_A.weight, for which there is no place"),
        (lone, rf"lacks {TARGETS[1]}.lora_B.weight"),
        (nan, rf"{TARGETS[0]}.lora_A.weight is not finite"),
        (control, r"x_embedder: A \(4, 999\) .* a control LoRA"),
        (other("lora_magnitude_vector"), r"lora_magnitude_vector is of a .*DoRA.*, which is not supported"),
        (lambda lora: lora.update({key: value[:0] for key, value in lora.items() if "lora_A" in key}), r"A \(0, .* do not fit"),
        (other("lokr_w1"), "lokr_w1 is of a LoKr"),
        (other("hada_w1_a"), "hada_w1_a is of a .*LoHa"),
        (lambda lora: lora.clear(), "no place|no .*LoRA|lacks"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_by_its_tensor(flux, tmp_path, damage, said):
    before = {key: value.clone() for key, value in flux.transformer.state_dict().items()}
    lora = pairs(flux.transformer, TARGETS)
    damage(lora)
    save_file(lora, tmp_path / LORA_FILE)
    with pytest.raises(InputError, match=said):
        apply_weights(flux, ["transformer"], str(tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in flux.transformer.state_dict().items())


def test_a_target_without_tensors_is_refused(flux, tmp_path):
    save_file(pairs(flux.transformer, TARGETS[:1]), tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["attn.to_q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks .*attn.to_q.lora_A.weight"):
        apply_weights(flux, ["transformer"], str(tmp_path))


def test_places_that_hold_no_weights_are_named(flux, tmp_path):
    (tmp_path / "several").mkdir()
    for name in "ab":
        save_file(pairs(flux.transformer, TARGETS), tmp_path / "several" / f"{name}.safetensors")
    for name in ("", "lora", "named"):
        (tmp_path / "two" / name).mkdir(exist_ok=True, parents=True)
        save_file(pairs(flux.transformer, TARGETS), tmp_path / "two" / name / LORA_FILE)
    shutil.copy(tmp_path / "two/named" / LORA_FILE, tmp_path / "two/named/adapter_model.safetensors")
    flux.transformer.save_pretrained(tmp_path / "whole")
    whole = tmp_path / "whole/diffusion_pytorch_model.safetensors"
    shutil.copy(whole, whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    (tmp_path / "lora.bin").write_bytes(b"x")
    for path, said in {
        str(tmp_path / "absent"): "no such file or folder",
        "someone/some-lora": "neither here nor on the hub",
        str(tmp_path / "several"): r"it has a.safetensors, b.safetensors; give the path of one",
        str(tmp_path / "two"): rf"weights lie in {tmp_path}/two/lora and in {tmp_path}/two; give the path of one",
        str(tmp_path / "two/named"): r"it has pytorch_lora_weights.safetensors, adapter_model.safetensors; give the path of one",
        str(tmp_path / "whole"): r"diffusion_pytorch_model.safetensors beside it has .* as well, so one of them is too much",
        str(tmp_path / "lora.bin"): "only safetensors are read",
    }.items():
        with pytest.raises(InputError, match=said):
            apply_weights(flux, ["transformer"], path)


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.transformer."])
def test_whole_transformers_lose_their_wrapper(flux, tmp_path, wrapper):
    whole = {key: value + 0.5 for key, value in flux.transformer.state_dict().items()}
    save_file({wrapper + key: value for key, value in whole.items()}, tmp_path / "whole.safetensors")
    apply_weights(flux, ["transformer"], str(tmp_path / "whole.safetensors"))
    assert all(torch.equal(value, whole[key]) for key, value in flux.transformer.state_dict().items())
    save_file(dict(list(whole.items())[1:]), tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=f"lacks {next(iter(whole))}"):
        apply_weights(flux, ["transformer"], str(tmp_path / "cut.safetensors"))
    wide = whole | {"context_embedder.weight": torch.zeros(3, 5)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match="size mismatch for context_embedder.weight"):
        apply_weights(flux, ["transformer"], str(tmp_path / "wide.safetensors"))


NETWORK = "transformer/diffusion_pytorch_model.safetensors"


def cut(folder):
    (folder / NETWORK).write_bytes((folder / NETWORK).read_bytes()[:-5000])


def pointer(folder):
    (folder / "vae/diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def variant(folder):
    (folder / NETWORK).rename(folder / "transformer/diffusion_pytorch_model.fp16.safetensors")


def index(folder):
    (folder / "model_index.json").write_text('{"_class_name": "Flux')


def vocabulary(folder):
    (folder / "tokenizer/tokenizer.json").write_bytes((folder / "tokenizer/tokenizer.json").read_bytes()[:-9])


def prefixed(folder):
    save_file({f"module.{key}": value for key, value in load_file(folder / NETWORK).items()}, folder / NETWORK)


def poisoned(folder):
    file = folder / "text_encoder/model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("inf")
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    "damage, said",
    [
        (cut, "transformer cannot be loaded: .*diffusion_pytorch_model.safetensors is cut or damaged"),
        (pointer, "vae cannot be loaded: .*diffusion_pytorch_model.safetensors is a git-lfs pointer"),
        (variant, "transformer cannot be loaded: .*diffusion_pytorch_model.safetensors"),
        (vocabulary, "the pipeline cannot be loaded: .*tokenizer/tokenizer.json is cut or damaged"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "the pipeline cannot be loaded: tokenizer/ is missing"),
        (index, "neither a pipeline.s folder here .*model_index.json"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae cannot be loaded: vae/ is missing"),
        (lambda folder: (folder / "vae/config.json").unlink(), "vae cannot be loaded: .*config.json"),
        (lambda folder: (folder / NETWORK).unlink(), "transformer cannot be loaded: .*diffusion_pytorch_model.safetensors"),
        (prefixed, "transformer lacks .* and has module.*, for which there is no place"),
        (poisoned, "text_encoder: .* is not finite"),
    ],
)
def test_a_damaged_pipeline_is_named_by_component_and_file(untrained_pipeline, tmp_path, damage, said):
    folder = tmp_path / "model"
    shutil.copytree(untrained_pipeline, folder)
    damage(folder)
    with pytest.raises(InputError, match=f"policy.path .*{said}"):
        build_policy(PolicyConfig(path=str(folder)))


def test_notes_that_are_no_numbers_and_tokenizers_that_lack_a_file_are_named(tmp_path):
    shutil.copytree(EMBEDDED / "image", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer/tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="cannot encode a prompt .Asking to pad"):
        build_policy(PolicyConfig(path=str(tmp_path))).encode(["a cat"])
    (tmp_path / "otca.json").write_text('{"true_guidance": null}')
    with pytest.raises(InputError, match="otca.json: true_guidance is 'None' and no number"):
        build_policy(PolicyConfig(path=str(tmp_path)))


def test_a_pipeline_that_is_nowhere_or_of_two_models_is_told_in_one_line(untrained_pipeline, tmp_path):
    with pytest.raises(InputError, match="policy.path some/model: neither a pipeline.s folder here nor one on the hub"):
        build_policy(PolicyConfig(path="some/model"))
    pipeline = FluxPipeline.from_pretrained(untrained_pipeline)
    wide = dict(pipeline.transformer.config) | {"joint_attention_dim": pipeline.transformer.config.joint_attention_dim + 8}
    pipeline.register_modules(transformer=type(pipeline.transformer).from_config(wide))
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="encodes texts to width .* its components are of different models"):
        build_policy(PolicyConfig(path=str(tmp_path))).encode(["a cat"])


@pytest.mark.parametrize("alpha", [float("nan"), True, 0, "auto", [12], torch.tensor([1.0, 2.0])], ids=str)
def test_an_alpha_that_is_no_number_is_refused(alpha):
    """Each was taken for a number, or ended in a traceback."""
    tensor = alpha if isinstance(alpha, torch.Tensor) else None
    with pytest.raises(InputError, match="the alpha of proj is .* no number other than 0"):
        _scale({"lora_alpha": alpha}, "proj", 4, tensor, "policy.weights lora.safetensors")


@pytest.mark.parametrize(
    ("key", "dtype", "said"),
    [("weight", torch.int8, "weight is quantised"), ("transformer_2.weight", torch.float32, "weights of transformer_2, and the")],
)
def test_quantised_weights_and_those_of_a_second_network_are_refused(key, dtype, said, tmp_path):
    save_file({key: torch.ones(2, 2, dtype=dtype)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=said):
        apply_weights(SimpleNamespace(transformer=torch.nn.Linear(2, 2)), ["transformer"], str(tmp_path / "net.safetensors"))
