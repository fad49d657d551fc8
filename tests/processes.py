"""Commands that tests run to their end, with all that they start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

ROOT = Path(__file__).parent.parent


def ran(command: Sequence[object], seconds: float = 300, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a command and return it with what it wrote; ``environment``: variables beside this process's own.

    After so many seconds it is killed with its children, which would else hold its output open, and the test fails.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, said = process.communicate()
        raise AssertionError(f"{command} has not ended within {seconds:g} s: {(out + said)[-3000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, said)


def gloo_workers() -> int:
    """Threads of this process that belong to gloo, as Linux lists them."""
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


def leave() -> NoReturn:
    """End this process at once, with success: for what keeps gloo's workers in caches, out of `end_processes`' reach.

    DTensor does; one of those workers that still held a tensor would abort a dying interpreter. All processes of
    the launch end together.
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
