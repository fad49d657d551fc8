"""Servers on this machine for tests, and media to send to them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from otca.serving import bound, server_of
from otca.tasks import rendering, scenes, video_scenes
from otca.types import Prompt
from tests.killed import wait_for


@contextlib.contextmanager
def running(app, port=0):
    """The application on a port of this machine, in a thread; yields the address."""
    with bound("127.0.0.1", port, "") as listener:
        server = server_of(app, "critical", last_seconds=1)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            assert server.started, "the server ended at once"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def command(name: str, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`python -m otca serve-reward`; yields the process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "otca", "serve-reward", name, *options],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, re.search(r"at (http://\S+)", process.stdout.readline())[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def pictures(count=5):
    """Drawings of prompts, half of them under noise: media of many levels, not yet rounded to 256."""
    prompts, rng = scenes.prompts("train", count), np.random.default_rng(0)
    drawn = np.stack([rendering.render(scenes.draw_scene(p.spec, rng)) for p in prompts])
    drawn[1::2] += rng.normal(0, 0.05, drawn[1::2].shape)
    return torch.from_numpy(drawn).float().clamp(0, 1).unsqueeze(1), prompts


def clips(count=3):
    prompts, rng = video_scenes.prompts("train", count), np.random.default_rng(0)
    drawn = [video_scenes.render_clip(video_scenes.draw_clip(p.spec, rng)) for p in prompts]
    return torch.from_numpy(np.stack(drawn)).float(), prompts


class Told:
    """A reward that gives back numbers it was told, and counts how many calls it is in at once."""

    name, range, source, licence, revision = "told", (float("-inf"), float("inf")), "test", "", ""

    def __init__(self, answer, pause=lambda: None):
        self.answer, self.pause, self.calls, self.now, self.most = answer, pause, 0, 0, 0

    def score(self, media_BFCHW, prompts):
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        self.pause()
        self.now -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[: len(prompts)]


def blank(count, size=8):
    return torch.zeros(count, 1, 3, size, size), [Prompt(str(i), "x") for i in range(count)]
