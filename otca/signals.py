"""How a command ends: exit code 0, 2 with one line, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads on (``| head``);
and what may put a signal off."""

from __future__ import annotations

import argparse
import errno
import os
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
OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors of a file or folder that the user can mend."""


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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write is dropped
        return 128 + signal.SIGPIPE
    except BaseException as stop:
        code, said = _ending(stop)
        if code is None:
            raise
        notes = getattr(stop, "__notes__", ())  # the trainer's: where the same command goes on
        print(printable("; ".join([f"{program}: {said}", *notes])), file=sys.stderr)
        return code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if _signals.last_call is not None:
            _signals.last_call.cancel()


def _ending(stop: BaseException) -> tuple[int | None, str]:
    """Exit code and words of what ends a command; no code for a fault of the program."""
    if isinstance(stop, InputError | RewardError | TrainingError | FileNotFoundError | argparse.ArgumentError):
        return 2, f"error: {stop}"
    if isinstance(stop, OSError) and stop.errno in OF_THE_PLACE:
        return 2, f"error: {stop.filename or 'a file'}: {stop.strerror}; mend that or choose another folder, and start again"
    if isinstance(stop, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(stop, Terminated):
        return 128 + signal.SIGTERM, "stopped by SIGTERM"
    return None, ""


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
    numbers = {signal.SIGINT: _stop, signal.SIGTERM: _stop, signal.SIGALRM: _act}
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number, handler in numbers.items()}


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


def _act(*_: object) -> None:
    _signals.acted = True
    raise Terminated if _signals.first == signal.SIGTERM else KeyboardInterrupt
