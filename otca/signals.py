"""How a command ends: exit code 0, 2 with one line, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from otca.errors import InputError, RewardError, TrainingError, printable

LAST_CALL = 28.0
"""Seconds after which a process that was told to stop ends whatever it does; what is on disk is whole at any time."""


class Terminated(BaseException):
    """SIGTERM came (a scheduler takes the machine back, or a parent process ends)."""


class _Stop:
    """Handler of SIGINT and SIGTERM: the first one that came, and what may put it off, for `LAST_CALL` at most."""

    def __init__(self):
        self.first, self.busy, self.timer = 0, lambda: False, threading.Timer(LAST_CALL, self.end)
        self.timer.daemon = True

    def __call__(self, number: int, _frame: object) -> None:
        if self.first:
            if number == signal.SIGINT:
                self.act()
            return
        self.first = number
        self.timer.start()
        if not self.busy():
            self.act()

    def act(self) -> None:
        raise Terminated if self.first == signal.SIGTERM else KeyboardInterrupt

    def end(self) -> None:
        os._exit(128 + self.first)


_stop = _Stop()


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; what the user can mend, and being stopped, is told in one line on stderr."""
    global _stop
    _stop = _Stop()
    listens = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.signal(n, _stop) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM) if listens}
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write is dropped
        return 128 + signal.SIGPIPE
    except BaseException as stop:
        code, said = _ending(stop)
        if not code:
            raise
        notes = getattr(stop, "__notes__", ())  # the trainer's: where the same command goes on
        print(printable("; ".join([f"{program}: {said}", *notes])), file=sys.stderr)
        return code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _stop.timer.cancel()


def _ending(stop: BaseException) -> tuple[int, str]:
    """Exit code and words of what ends a command; 0 for a fault of the program."""
    if isinstance(stop, OSError) and stop.errno and not isinstance(stop, ConnectionError | TimeoutError):
        return 2, f"error: {stop.filename or 'a file'}: {stop.strerror}; mend that or choose another folder, and start again"
    if isinstance(stop, InputError | RewardError | TrainingError | FileNotFoundError | argparse.ArgumentError):
        return 2, f"error: {stop}"
    if isinstance(stop, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    return (128 + signal.SIGTERM, "stopped by SIGTERM") if isinstance(stop, Terminated) else (0, "")


@contextmanager
def defer_signals(busy: Callable[[], bool]) -> Iterator[None]:
    """Let a signal that comes while ``busy()`` wait for the end of the block, `LAST_CALL` at most; not a second Ctrl-C."""
    _stop.busy = busy
    try:
        yield
    finally:
        _stop.busy = lambda: False
    if _stop.first:
        _stop.act()
