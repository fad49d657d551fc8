"""How a command ends: exit code 0, 2 with one line, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads on (``| head``);
and what may put a signal off."""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from otca.errors import InputError, RewardError, TrainingError, printable

GRACE = 15.0
"""Seconds for which a signal is put off, so that an update in progress can reach its iteration's end."""
LAST_CALL = 28.0
"""Seconds after which a process that was told to stop ends whatever it does; what is on disk is whole at any time."""
FULL = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the limit on file sizes (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EIO: "the device answers with an input/output error",
}
"""What the system says of a file or folder that cannot be used, in words."""


class Terminated(BaseException):
    """SIGTERM came (a scheduler takes the machine back, or a parent process ends)."""


@dataclass
class _Signals:
    """The signal that came first, whether it was acted upon, what may put it off, and the timer that ends it all."""

    first: int | None = None
    acted: bool = False
    busy: Callable[[], bool] | None = None
    last_call: threading.Timer | None = None


_signals = _Signals()


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; what the user can mend, and being stopped, is told in one line on stderr."""
    handlers = _listen() if threading.current_thread() is threading.main_thread() else {}
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except (InputError, RewardError, TrainingError, FileNotFoundError, argparse.ArgumentError) as error:
        return _say(f"{program}: error: {error}{_notes(error)}", 2)
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in FULL:
            raise
        file = error.filename or "a file"
        return _say(f"{program}: error: {file}: {FULL[error.errno]}; mend that or choose another folder, and start again", 2)
    except KeyboardInterrupt as stop:
        return _say(f"{program}: interrupted{_notes(stop)}", 128 + signal.SIGINT)
    except Terminated as stop:
        return _say(f"{program}: stopped by SIGTERM{_notes(stop)}", 128 + signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if _signals.last_call is not None:
            _signals.last_call.cancel()


@contextmanager
def defer_signals(busy: Callable[[], bool]) -> Iterator[None]:
    """Let a signal that comes while ``busy()`` wait for the end of the block, `GRACE` seconds at most; not a second Ctrl-C."""
    _signals.busy = busy
    try:
        yield
    finally:
        _signals.busy = None
        if _signals.first is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if _signals.first is not None and not _signals.acted:
        _act()


def _listen() -> dict[int, object]:
    """Take over SIGINT, SIGTERM and the alarm; returns who had them."""
    global _signals
    _signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number, handler in zip(numbers, (_stop, _stop, lambda *_: _act())):
        signal.signal(number, handler)
    return before


def _stop(number: int, _frame: object) -> None:
    if _signals.first is None:
        _signals.first = number
        _signals.last_call = threading.Timer(LAST_CALL, os._exit, (128 + number,))
        _signals.last_call.daemon = True
        _signals.last_call.start()
        if _signals.busy is not None and _signals.busy():
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        else:
            _act()
    elif number == signal.SIGINT:
        _act()


def _act() -> None:
    _signals.acted = True
    raise Terminated if _signals.first == signal.SIGTERM else KeyboardInterrupt


def _reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more; what was still to be written is then dropped."""
    asked = select.poll()
    asked.register(sys.stdout, 0)
    left = any(events & select.POLLERR for _, events in asked.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _notes(stop: BaseException) -> str:
    """What the trainer noted on its way out: where the same command goes on."""
    return "".join(f"; {note}" for note in getattr(stop, "__notes__", ()))


def _say(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code
