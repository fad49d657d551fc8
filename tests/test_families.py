"""Every family against its stock pipeline: samples, exact first ratios, LoRAs that diffusers reads, time shift, plan.

``python -m tests.test_families`` measures the parity anew and writes it to results/precision/families.csv.
"""

from __future__ import annotations

import csv
import math
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler

from baselines import find_method
from otca import presets
from otca.config import PolicyConfig, SamplerConfig, TrainConfig
from otca.errors import InputError
from otca.methods import METHODS
from otca.models.base import FAMILIES, PIPELINES, build_policy, family_of
from otca.models.weights import LORA_FILE
from otca.plan import plan
from otca.sampling import Plan, make_batch, rollout, sigmas_S
from otca.shapes import PUBLISHED
from otca.types import Prompt
from tests.tiny_pipelines import BUILD, build
from tests.toys import REWARDS, toy_config, trained

PARITY = Path(__file__).parents[1] / "results" / "precision" / "families.csv"
TEXT, STEPS, TOLERANCE = 'a red circle, "yes"', 3, 1e-5
VIDEO = {"wan": 5, "wan_experts": 5, "wan_5b": 5, "hunyuan_video": 5, "ltx2": 9}
LENGTHS = {"flux": 8, "sd3": 10, "wan": 20, "wan_experts": 20}
"""Text tokens, where they are not 300: the tokenizers of the embedded tasks know words, the others bytes."""


def length_of(name: str) -> int:
    return LENGTHS.get(name, 300)


def settings(name: str, path: str, **more) -> dict[str, object]:
    return {"path": path, "max_sequence_length": length_of(name), "frames": VIDEO.get(name, 0)} | more


class Fixed(FlowMatchEulerDiscreteScheduler):
    """The stock scheduler on given noise levels."""

    levels: torch.Tensor

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(sigmas=self.levels[:-1].tolist(), device=device)


def arguments(name: str, pipeline, guidance: float, latents: torch.Tensor, policy) -> dict[str, object]:
    """What the stock pipeline is called with."""
    empty = {"negative_prompt": [""] * len(latents)}
    out = {"latents": latents, "max_sequence_length": length_of(name)}
    if name in ("flux2", "flux2_klein"):
        out |= {
            "latents": policy._patches(latents),
            "guidance_scale": guidance if name == "flux2_klein" else policy.config.guidance,
        }
    elif name == "flux" or name.startswith("qwen_image"):
        out |= {"true_cfg_scale": guidance} | (empty if guidance > 1 else {})
    elif name == "z_image":
        out |= {"guidance_scale": guidance - 1} | empty
    elif name.startswith("wan") or name == "sd3":
        out |= {"guidance_scale": guidance} | empty
    elif name == "hunyuan_video":
        pipeline.guider, pipeline.tokenizer_max_length = ClassifierFreeGuidance(guidance_scale=guidance), 300
        pipeline.vae.enable_slicing()  # stock decoding of two at once fails in its attention mask
    elif name == "ltx2":
        audio = latents[:, policy._tokens() :]
        statistics = pipeline.audio_vae.latents_mean, pipeline.audio_vae.latents_std
        out |= {
            "latents": latents[:, : policy._tokens()],
            "audio_latents": pipeline._denormalize_audio_latents(audio, *statistics),
        }
        out |= {"guidance_scale": guidance, "audio_guidance_scale": guidance, "stg_scale": 0.0, "audio_stg_scale": 0.0}
        out |= {"modality_scale": 1.0, "audio_modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
    if name in ("hunyuan_video", "qwen_image_21"):
        del out["max_sequence_length"]
    return out


def stock(name: str, pipeline, policy, latents: torch.Tensor, sigma_S: torch.Tensor, guidance: float) -> torch.Tensor:
    """Media (B, F, 3, H, W) of the stock pipeline itself, from the same noise on the same levels."""
    pipeline.scheduler = Fixed(shift=1.0)
    pipeline.scheduler.levels = sigma_S
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": policy.height, "width": policy.width} | ({"num_frames": policy.frames} if name in VIDEO else {})
    given = arguments(name, pipeline, guidance, latents, policy)
    out = pipeline(prompt=[TEXT] * len(latents), num_inference_steps=len(sigma_S) - 1, output_type="pt", **size, **given)
    return out.frames if name in VIDEO else out.images[:, :3].unsqueeze(1)


def ours(policy, sigma_S: torch.Tensor):
    never = torch.zeros(len(sigma_S) - 1, dtype=torch.bool)
    batch = make_batch([Prompt("a", TEXT)], [0], 2, ("parity",))
    return rollout(policy, batch, Plan(SamplerConfig(steps=len(sigma_S) - 1), sigma_S, never, never, 2))


def guided(name: str, path: str, guidance: float):
    """The policy of a family with that guidance."""
    embedded = {"guidance": guidance, "true_guidance": 1.0}
    policy = build_policy(PolicyConfig(**settings(name, path, **(embedded if name == "flux2" else {"true_guidance": guidance}))))
    assert policy.forwards_per_velocity == (2 if guidance > 1 and name != "flux2" else 1)
    return policy


def parity(name: str, policy, guidance: float) -> float:
    """Largest difference of a pixel between our ODE rollout and the stock pipeline's."""
    sigma_S = sigmas_S(STEPS, 3.0)
    sampled = ours(policy, sigma_S)
    theirs = stock(name, policy.pipeline, policy, sampled.latents_SB[0], sigma_S, guidance)
    assert theirs.std() > 0.01 and theirs.shape == sampled.media_BFCHW.shape
    return float((sampled.media_BFCHW - theirs).abs().max())


def assert_shift_is_the_stock_pipelines(name: str, policy) -> None:
    """The levels that its scheduler makes of the pipeline's own linear ones are those of our shift."""
    pipeline, latents = policy.pipeline, policy.noise([torch.Generator().manual_seed(0)])
    scheduler, seen = pipeline.scheduler, {}
    if name.startswith("wan") or name == "sd3":  # Wan's solver; SD3's linear levels, which end elsewhere
        assert policy.shift == scheduler.config.get("flow_shift", scheduler.config.get("shift"))
        return

    class Stop(Exception):
        pass

    def record(num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        type(scheduler).set_timesteps(scheduler, sigmas=sigmas, mu=mu, device=device)
        seen["sigmas"] = scheduler.sigmas
        raise Stop

    scheduler.set_timesteps = record
    size = {"height": 64, "width": 64} | ({"num_frames": policy.frames} if name in VIDEO else {})
    with pytest.raises(Stop):
        pipeline(prompt=[TEXT], num_inference_steps=50, **size, **arguments(name, pipeline, 1.0, latents, policy))
    linear = torch.cat([torch.linspace(1, 1 / 50, 50), torch.zeros(1)]).double()
    expected = policy.shift * linear / (1 + (policy.shift - 1) * linear)
    torch.testing.assert_close(seen["sigmas"].double(), expected, rtol=0, atol=1e-5)
    assert name == "flux" or not math.isclose(policy.shift, 1.0)


@pytest.mark.parametrize("name", BUILD)
def test_time_shift_and_ode_rollout_are_the_stock_pipelines(tiny, name):
    """With guidance; without, the test of the LoRAs compares the rollouts."""
    assert family_of(PolicyConfig(path=tiny(name))) == ("wan" if name.startswith("wan") else name)
    policy = guided(name, tiny(name), 3.0)
    assert_shift_is_the_stock_pipelines(name, policy)
    assert parity(name, policy, 3.0) < TOLERANCE


@pytest.mark.parametrize("name", BUILD)
def test_training_starts_at_ratio_one_and_stock_diffusers_reads_the_lora(tiny, tmp_path, name):
    """One iteration of a LoRA: the first ratio is 1, weights move, a value head reads hidden states, and the saved LoRA gives
    our sample in the stock pipeline."""
    policy = {f"policy.{key}": value for key, value in settings(name, tiny(name)).items()}
    policy |= {"policy.tuning": "lora", "policy.lora_rank": 2, "policy.lora_alpha": 6.0, "policy.true_guidance": 1.0}
    sizes = {"prompts_per_iteration": 1, "group_size": 2, "micro_batch": 2, "sampler.steps": STEPS}
    rates = {"optimizer.updates_per_iteration": 1, "optimizer.learning_rate": 0.1}
    rates |= {"credit.sampled_steps": 0}  # drawn steps are batched anew
    trainer = trained(toy_config("value_head", tiny(name), **policy, **sizes, **rates), tmp_path)
    row = pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row["first_ratio_deviation"] == 0 and row["update_norm"] > 0
    saved, fresh, sigma_S = tmp_path / "checkpoints" / "iteration_000001", type(trainer.policy.pipeline), sigmas_S(STEPS, 3.0)
    own, fresh = ours(trainer.policy, sigma_S), fresh.from_pretrained(tiny(name))
    before = stock(name, fresh, trainer.policy, own.latents_SB[0], sigma_S, 1.0)
    read = getattr(fresh, "load_lora_weights", fresh.transformer.load_lora_adapter)  # HunyuanVideo-1.5 has the second alone
    read(saved, weight_name=LORA_FILE)
    if name == "wan_experts":
        fresh.load_lora_weights(saved / "transformer_2", load_into_transformer_2=True)
    after = stock(name, fresh, trainer.policy, own.latents_SB[0], sigma_S, 1.0)
    torch.testing.assert_close(own.media_BFCHW, after, rtol=0, atol=TOLERANCE)
    assert (after - before).abs().max() > 100 * TOLERANCE
    merged = build_policy(PolicyConfig(**settings(name, tiny(name), weights=str(saved), true_guidance=1.0)))
    torch.testing.assert_close(ours(merged, sigma_S).media_BFCHW, after, rtol=0, atol=2 * TOLERANCE)


@pytest.mark.parametrize("name", ["flux2", "sd3", "qwen_image", "z_image", "hunyuan_video", "ltx2"])
def test_plan_knows_it(tiny, name):
    config = TrainConfig(policy=PolicyConfig(**settings(name, tiny(name), tuning="lora")), rewards=REWARDS[:1])
    made = plan(config, METHODS["otca"])
    counted = (made.trained, made.memory["text encoders"], made.memory["forward and backward pass (update)"])
    assert min(*counted, made.flops["sampling"]) > 0


def tiny_of(path: str) -> str:
    """The small pipeline that stands for a published one."""
    if "A14B" in path or "TI2V" in path:
        return "wan_experts" if "A14B" in path else "wan_5b"
    return PIPELINES[PUBLISHED[path]["pipeline"]]


@pytest.mark.parametrize("name", [name for name, own in presets.TRAIN.items() if "/" in str(own.get("policy.path", ""))])
def test_every_published_preset_trains(tiny, tmp_path, name):
    """Two iterations, with its own method settings, loss, optimizer and sampler; pipeline, sizes, steps and rewards are small."""
    own, method = presets.preset(name), find_method("flow_grpo" if name.startswith("validate") else "otca")
    pipeline, prompts = tiny_of(own["policy.path"]), tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    small = {f"policy.{key}": value for key, value in settings(pipeline, tiny(pipeline), height=64, width=64).items()}
    small |= {"policy.prompt_cache": str(tmp_path / "cache")} if "policy.prompt_cache" in own else {}
    small |= {"prompts": str(prompts), "rewards": REWARDS}
    small |= {"iterations": 2, "prompts_per_iteration": 2, "group_size": 2, "micro_batch": 2, "sampler.steps": 3}
    small |= {"validation.source": str(prompts), "validation.prompts": 1, "validation.steps": 2}
    trained(TrainConfig.from_dotted(own | method.settings | small | {"method": method.name}), tmp_path / "run")
    rows = pd.read_csv(tmp_path / "run" / "train.csv")
    assert len(rows) == 2 and rows.notna().all(axis=None) and (rows["update_norm"] > 0).all()
    assert (rows["first_ratio_deviation"] < 1e-2).all()  # exactly 0 in fp32, above


def test_parity_is_published_for_every_family():
    """As `python -m tests.test_families` writes it."""
    rows = pd.read_csv(PARITY)
    assert sorted(zip(rows["family"], rows["true_guidance"])) == sorted((name, g) for name in BUILD for g in (1.0, 3.0))
    assert (rows["max_abs_difference"] < TOLERANCE).all()


def test_sizes_beyond_the_position_table_are_refused(tiny):
    with pytest.raises(InputError, match="height × width is 64 × 256; .* makes 128 pixels a side at most"):
        build_policy(PolicyConfig(path=tiny("sd3"), width=256))


def test_guidance_is_the_checkpoints_own_where_it_has_one(tiny):
    policy = build_policy(PolicyConfig(**settings("hunyuan_video", tiny("hunyuan_video"))))
    assert policy.true_guidance == 3.0 and policy.forwards_per_velocity == 2


def test_distilled_checkpoints_are_refused_unless_asked_for(tiny, tmp_path):
    turbo = tmp_path / "Z-Image-Turbo"
    build("z_image").save_pretrained(turbo)
    with pytest.raises(InputError, match="Z-Image-Turbo is distilled to a few steps, so .*; train its base model, or set"):
        build_policy(PolicyConfig(**settings("z_image", str(turbo))))
    assert build_policy(PolicyConfig(**settings("z_image", str(turbo), distilled=True))).experts == 1
    klein = build("flux2_klein")
    klein.register_to_config(is_distilled=True)
    klein.save_pretrained(tmp_path / "klein")
    with pytest.raises(InputError, match="is distilled to a few steps"):
        build_policy(PolicyConfig(**settings("flux2_klein", str(tmp_path / "klein"))))


if __name__ == "__main__":
    with open(PARITY, "w", newline="", encoding="utf-8") as file, tempfile.TemporaryDirectory() as temporary:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["family", "pipeline", "true_guidance", "max_abs_difference"])
        for name in BUILD:
            path = f"{temporary}/{name}"
            build(name).save_pretrained(path)
            pipeline = FAMILIES[family_of(PolicyConfig(path=path))][0]
            for guidance in (1.0, 3.0):
                writer.writerow([name, pipeline, guidance, f"{parity(name, guided(name, path, guidance), guidance):.1e}"])
