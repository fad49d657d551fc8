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
