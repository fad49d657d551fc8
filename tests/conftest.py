"""Shared fixtures: one thread, also in the processes that tests start, and untrained pipeline folders of embedded size."""

from __future__ import annotations

import gc
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


@pytest.fixture
def short_collections():
    """What is alive before a test is no garbage of it, and need not be looked through whenever it collects."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Name in `tiny_pipelines.BUILD` → folder of that small random pipeline, as diffusers saves it."""
    from tests.tiny_pipelines import build

    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = str(tmp_path_factory.mktemp(name))
            build(name).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def toy_pipeline(tmp_path_factory) -> str:
    """Folder of the embedded image task's FluxPipeline, untrained, with one block of each kind: the fastest to train."""
    from otca.tasks import architecture

    torch.manual_seed(0)
    pipeline = architecture.build_pipeline()
    sizes = {**pipeline.transformer.config, "num_layers": 1, "num_single_layers": 1}
    pipeline.register_modules(transformer=type(pipeline.transformer).from_config(sizes))
    folder = tmp_path_factory.mktemp("toy")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def untrained_pipeline(tiny) -> str:
    """Folder of a FluxPipeline with random weights."""
    return tiny("flux")


@pytest.fixture(scope="session")
def untrained_wan(tiny) -> str:
    """Folder of a WanPipeline with random weights and one transformer."""
    return tiny("wan")


@pytest.fixture(scope="session")
def untrained_experts(tiny) -> str:
    """Folder of a WanPipeline laid out as Wan2.2-A14B: two transformers that differ, boundary_ratio 0.875."""
    return tiny("wan_experts")


@pytest.fixture(scope="session")
def untrained_sd3(tiny) -> str:
    """Folder of a StableDiffusion3Pipeline with random weights, laid out as SD3.5 medium (dual attention, QK norm)."""
    return tiny("sd3")


@pytest.fixture(scope="session")
def video():
    """A rendered clip (9, 3, 64, 64) on 8-bit levels."""
    import numpy as np

    from otca.tasks import video_scenes

    clip = video_scenes.draw_clip(video_scenes.prompts("validation", 1)[0].spec, np.random.default_rng(0))
    return (torch.from_numpy(video_scenes.render_clip(clip)) * 255).round() / 255
