"""Shared fixtures: one thread, also in the processes that tests start, and untrained pipeline folders of embedded size."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded

import pytest
import torch

torch.set_num_threads(1)
SLOW_SECONDS = 3600


def pytest_collection_modifyitems(items):
    """Tests marked slow may take longer than the limit in pyproject.toml."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its first precision for the whole process; every test may choose its own."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def untrained_pipeline(tmp_path_factory) -> str:
    """Folder of a FluxPipeline with random weights (made by diffusers' own `save_pretrained`)."""
    from otca.tasks import architecture

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    architecture.build_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def toy_pipeline(tmp_path_factory) -> str:
    """The same with one block of each kind in its transformer: the fastest to train."""
    from otca.tasks import architecture

    torch.manual_seed(0)
    pipeline = architecture.build_pipeline()
    sizes = {**pipeline.transformer.config, "num_layers": 1, "num_single_layers": 1}
    pipeline.register_modules(transformer=type(pipeline.transformer).from_config(sizes))
    folder = tmp_path_factory.mktemp("toy")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_wan(tmp_path_factory) -> str:
    """Folder of a WanPipeline with random weights and one transformer."""
    from otca.tasks import video_architecture

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    video_architecture.build_pipeline(video_architecture.build_vae()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_experts(tmp_path_factory) -> str:
    """Folder of a WanPipeline laid out as Wan2.2-A14B: two transformers that differ, boundary_ratio 0.875."""
    from otca.tasks import video_architecture

    torch.manual_seed(1)
    pipeline = video_architecture.build_pipeline(video_architecture.build_vae())
    pipeline.register_modules(transformer_2=video_architecture.build_transformer())
    pipeline.register_to_config(boundary_ratio=0.875)
    folder = tmp_path_factory.mktemp("experts")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_sd3(tmp_path_factory) -> str:
    """Folder of a StableDiffusion3Pipeline with random weights, laid out as SD3.5 medium (dual attention, QK norm)."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    from otca.tasks.architecture import build_tokenizer, t5_sizes
    from otca.tasks.scenes import vocabulary

    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary(), 12)
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=12,
                projection_dim=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
        for _ in range(2)
    ]
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            out_channels=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            latent_channels=16,
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(T5Config(**t5_sizes(len(tokenizer), width=64, layers=2))),
        tokenizer_3=tokenizer,
    )
    folder = tmp_path_factory.mktemp("sd3")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def video():
    """A rendered clip (9, 3, 64, 64) on 8-bit levels."""
    import numpy as np

    from otca.tasks import video_scenes

    clip = video_scenes.draw_clip(video_scenes.prompts("validation", 1)[0].spec, np.random.default_rng(0))
    return (torch.from_numpy(video_scenes.render_clip(clip)) * 255).round() / 255
