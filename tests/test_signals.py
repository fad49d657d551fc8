"""What a command does whose output nobody reads on: it ends as a shell's commands do, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otca.signals import run_command

ROOT = Path(__file__).parent.parent
SCRIPT = "import sys; from otca.signals import run_command; sys.exit(run_command('x', lambda: print('line', flush={flush})))"


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_left_ends_the_command(flush):
    """As after ``| head -1``: the code of SIGPIPE, nothing on stderr; whether or not the text was still in the buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", SCRIPT.format(flush=flush)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_not_hidden():
    """That of a socket, say: standard output is read."""

    def command():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command("x", command)
