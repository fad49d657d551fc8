"""A run's folder belongs to one process at a time; a killed one leaves nothing behind that would keep others out."""

from __future__ import annotations

import os
import signal
import time

import pytest

from otca.__main__ import main
from otca.errors import InputError
from otca.files import LOCK, is_held, run_lock, write_atomic
from tests.killed import code_of, start, wait_for


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/run and has left a half-written file there."""
    folder = tmp_path / "run"

    def hold():
        with run_lock(folder):
            (folder / ".train.csv.x.partial").write_text("half")
            (folder / "held").touch()
            time.sleep(60)

    pid = start(hold)
    wait_for((folder / "held").exists)
    yield pid
    os.kill(pid, signal.SIGKILL)
    code_of(pid)


def test_the_second_process_is_refused_and_told_who_is_first(tmp_path, holder, capsys, toy_pipeline):
    with pytest.raises(InputError, match=rf"run is in use by pid {holder} on \S+; wait for it"), run_lock(tmp_path / "run"):
        raise AssertionError("two processes hold one folder")
    argv = ["train", "--policy.path", toy_pipeline, "--iterations", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 2 and f"in use by pid {holder}" in capsys.readouterr().err
    assert is_held(tmp_path / "run") and not (tmp_path / "run" / "config.yaml").exists()


def test_the_lock_of_a_killed_process_is_taken_over_and_its_leavings_removed(tmp_path, holder):
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: not is_held(tmp_path / "run"))
    assert f"pid {holder} " in (tmp_path / "run" / LOCK).read_text()
    for _ in range(2):
        with run_lock(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK).read_text().startswith(f"pid {os.getpid()} on ")
            assert is_held(tmp_path / "run") and not list((tmp_path / "run").glob("*.partial"))
    assert not is_held(tmp_path / "run")


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
