"""Runs in forked processes that are killed on the way, and what they leave."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from otca.files import LOCK, sha256

HUNG_SECONDS = 240
"""Time after which a forked process says where it hangs and ends."""

CLOCK = {"timing.csv", "cost.json", "curves-seconds.png", "curves-seconds.svg", LOCK}
"""Files whose content depends on the clock or the process."""


def start(function: Callable[[], int | None], output: Path | None = None) -> int:
    """Run a function in a forked process; returns its pid. Its exit code is what the function returns, 99 for an exception."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with all forks: who is killed in it would keep it for ever
    try:
        if output is not None:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = function() or 0
    finally:
        if output is not None:
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def code_of(pid: int) -> int:
    """Wait for a process: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(function: Callable[[], int | None]) -> None:
    """Run a function in a forked process to its end."""
    assert code_of(start(function)) == 0


def dying(monkeypatch, module: object, name: str, call: int, after: bool = False) -> None:
    """Let the ``call``-th call of a function kill its process with SIGKILL, before or after its work."""
    original, calls = getattr(module, name), []

    @functools.wraps(original)
    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        out = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    monkeypatch.setattr(module, name, counted)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder that does not depend on the clock."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in CLOCK)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}
