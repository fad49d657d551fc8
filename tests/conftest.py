"""Shared fixtures: one thread, and an untrained FluxPipeline folder of embedded size."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def untrained_pipeline(tmp_path_factory) -> str:
    """Folder of a FluxPipeline with random weights (made by diffusers' own `save_pretrained`)."""
    from otca.embedded import architecture

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    architecture.build_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_wan(tmp_path_factory) -> str:
    """Folder of a WanPipeline with random weights and one transformer."""
    from otca.embedded import video_architecture

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    video_architecture.build_pipeline(video_architecture.build_vae()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_experts(tmp_path_factory) -> str:
    """Folder of a WanPipeline laid out as Wan2.2-A14B: two transformers that differ, boundary_ratio 0.875."""
    from otca.embedded import video_architecture

    torch.manual_seed(1)
    pipeline = video_architecture.build_pipeline(video_architecture.build_vae())
    pipeline.register_modules(transformer_2=video_architecture.build_transformer())
    pipeline.register_to_config(boundary_ratio=0.875)
    folder = tmp_path_factory.mktemp("experts")
    pipeline.save_pretrained(folder)
    return str(folder)
