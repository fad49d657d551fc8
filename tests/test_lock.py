"""A run's folder belongs to one process at a time; a killed one leaves nothing behind that would keep others out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otca.__main__ import main
from otca.errors import InputError
from otca.files import LOCK, run_lock

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from otca.files import run_lock
with run_lock(Path({folder!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/run."""
    code = HOLDER.format(root=str(Path(__file__).parent.parent), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_refused_and_told_who_is_first(tmp_path, holder, capsys, untrained_pipeline):
    with pytest.raises(InputError, match=rf"run is in use by pid {holder.pid} on \S+; wait for it"), run_lock(tmp_path / "run"):
        raise AssertionError("two processes hold one folder")
    argv = ["train", "--policy.path", untrained_pipeline, "--iterations", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 2 and f"in use by pid {holder.pid}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert f"pid {holder.pid} " in (tmp_path / "run" / LOCK).read_text()
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"pid {os.getpid()} on ")


def test_a_folder_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with run_lock(tmp_path):
            time.sleep(0)
