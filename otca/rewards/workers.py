"""Threads that score while the main thread waits: they can be waited for with a limit, and never outlast the process."""

from __future__ import annotations

import atexit
import contextvars
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack
from typing import TypeVar

import torch

Answer = TypeVar("Answer")
ENDING_SECONDS = 2.0  # time that threads have to end once the process does


class Late(Exception):
    """No answer within the limit."""


class Worker(threading.Thread):
    """A daemon thread that can be told to end."""

    def end(self) -> None:
        """Raise SystemExit in it as soon as it runs Python again; a call that hangs in C goes on hanging."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))


class Workers:
    """A daemon thread for each call, of which ``count`` run at a time; a pool of the library's would keep the process waiting."""

    def __init__(self, count: int, name: str):
        self.name, self._turn = name, threading.Semaphore(count)

    def submit(self, function: Callable[..., Answer], *arguments: object) -> Future[Answer]:
        """Call it in a thread; whatever it raises, SystemExit too, is the future's, whose ``thread`` is the thread."""
        future: Future[Answer] = Future()
        future.thread = Worker(target=self._work, args=(future, function, arguments), name=self.name, daemon=True)
        future.thread.start()
        return future

    def _work(self, future: Future, function: Callable, arguments: tuple) -> None:
        with self._turn:
            if not future.set_running_or_notify_cancel():
                return
            try:
                answer = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)


def joined(parts: Sequence[Future[torch.Tensor]], seconds: float = 0.0) -> torch.Tensor:
    """The scores of consecutive samples, once all are there: (B,).

    Raises the first error as soon as there is one, `Late` after so many seconds (0: never), and what signal handlers raise.
    What has not begun is called off then, and threads of `Workers` that are at work are told to end.
    """
    try:
        done, late = wait(parts, min(seconds, threading.TIMEOUT_MAX) or None, FIRST_EXCEPTION)
        found = [part.result() for part in parts if part in done]
        if late:
            raise Late(f"no answer within {seconds:g} s")
        return found[0] if len(found) == 1 else torch.cat(found)
    finally:
        for part in parts:
            if not part.cancel() and not part.done() and hasattr(part, "thread"):
                part.thread.end()


def as_here(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """The function, to be called in another thread, under what torch and Python keep for each thread, as it is in this one."""
    gradients, inference, threads = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()
    lower = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    context = contextvars.copy_context()

    def called(*arguments: object) -> Answer:
        torch.set_num_threads(threads)
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(inference))
            modes.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype in lower:
                modes.enter_context(torch.autocast(kind, dtype))
            if stream is not None:
                modes.enter_context(torch.cuda.stream(stream))  # and its device
            return context.run(function, *arguments)

    return called


@atexit.register
def _end_all() -> None:
    """A thread that came back from torch while the interpreter goes down would abort it (exit code 134)."""
    busy = [thread for thread in threading.enumerate() if isinstance(thread, Worker)]
    for thread in busy:
        thread.end()
    until = time.monotonic() + ENDING_SECONDS
    for thread in busy:
        thread.join(max(0.0, until - time.monotonic()))
