"""How a command ends: codes, one line, and no traceback where nobody reads on or the place is full."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

import otca.signals
from otca.errors import InputError
from otca.signals import defer_signals, run_command
from tests.killed import code_of, start
from tests.processes import ROOT

SCRIPT = "import sys; from otca.signals import run_command; sys.exit(run_command('x', lambda: print('line', flush={})))"


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_left_ends_the_command(flush):
    """As after ``| head -1``: the code of SIGPIPE, nothing on stderr; whether or not the text was still in the buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", SCRIPT.format(flush)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (InputError("a\nb"), 2, "x: error: a b"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f"), 2, "x: error: f: No space left on device; mend that or choose"),
        (KeyboardInterrupt(), 130, "x: interrupted"),
        (otca.signals.Terminated(), 143, "x: stopped by SIGTERM; note"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, code, said):
    error.add_note("note")

    def command():
        raise error

    assert run_command("x", command) == code
    line = capsys.readouterr().err
    assert line.startswith(said) and line.endswith("; note\n") and line.count("\n") == 1


def test_faults_of_the_program_are_raised():
    with pytest.raises(ZeroDivisionError):
        run_command("x", lambda: 1 // 0)


@pytest.mark.parametrize("busy", [False, True])
def test_who_does_not_come_to_an_end_is_stopped(busy, monkeypatch):
    """A put-off signal, and code that never answers, are ended by the last call."""
    monkeypatch.setattr(otca.signals, "LAST_CALL", 0.5)

    def stubborn():
        end = time.monotonic() + 10
        with defer_signals(lambda: busy):
            while time.monotonic() < end:
                with contextlib.suppress(BaseException):
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.05)

    started = time.monotonic()
    assert code_of(start(lambda: run_command("stubborn", stubborn))) == 143
    assert time.monotonic() - started < 5
