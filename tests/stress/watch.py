"""Notices what nobody asked for: complaints in logs and warnings, threads and tasks that stay.

One report at a time is told, process-wide; a forked child names its own.
"""

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import Any, NoReturn, TextIO

from tests.stress.model import Report

__all__ = ("Before", "install", "set_limit")

_current: list[Report] = []


class _Handler(logging.Handler):
    """Takes an error in the log for a failure."""

    def emit(self, record: logging.LogRecord) -> None:
        _complain("logged", self.format(record))


_handler = _Handler(logging.ERROR)


def _complain(how: str, what: object) -> None:
    _current[0].fail(f"{how}: {what}")


def _unraisable(found: Any) -> None:
    error = "".join(traceback.format_exception(found.exc_value))
    _complain("unraisable", f"{found.err_msg} {found.object!r}\n{error}")


def _thread_died(found: threading.ExceptHookArgs) -> None:
    _complain("a thread died", "".join(traceback.format_exception(found.exc_value)))


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain("warning", f"{filename}:{lineno}: {category.__name__}: {message}")


def install(report: Report) -> None:
    """Tell `report` from now on."""
    _current[:] = [report]
    logging.getLogger().addHandler(_handler)
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_died
    warnings.simplefilter("always")
    # To fork with threads running is what is tried here; from Python 3.12 on it warns.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    warnings.showwarning = _warned


def set_limit(seconds: int) -> None:
    """Have this process say where it stands and end, if it still runs after so many seconds; in the main thread."""
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(seconds)


def _time_is_up(signum: int, frame: object) -> NoReturn:
    print(f"\nhung: process {os.getpid()} has not ended in time", file=sys.stderr)
    for task in _pending_tasks():
        print(f"{task!r}\n  {_awaited_by(task)}", file=sys.stderr)
    faulthandler.dump_traceback()
    os._exit(3)


def _awaited_by(task: "asyncio.Task[Any]") -> str:
    """Return the functions in which a task waits, from the outside in, with the steps of the plan."""
    found: list[str] = []
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        step = frame.f_locals.get("step")
        where = "" if step is None else f" {step.number}"
        found.append(f"{frame.f_code.co_name}{where}")
        coroutine = getattr(coroutine, "cr_await", None)
    return " > ".join(found)


class Before:
    """What there was before; tells what has come since and has stayed."""

    def __init__(self) -> None:
        self._threads = threading.enumerate()
        self._tasks = _pending_tasks()

    def check(self, report: Report) -> None:
        """Report every thread and task that is new, but for idle workers of the bridge, and every loop left open."""
        gc.collect()
        for thread in threading.enumerate():
            if thread not in self._threads:
                _check_thread(thread, report)
        # In a forked child, another thread may have been just making one: of those nothing may be asked.
        for task in _pending_tasks():
            if task not in self._tasks:  # pragma: no branch  # in a child there may be some
                report.fail(f"a task stayed: {task!r}")


def _check_thread(thread: threading.Thread, report: Report) -> None:
    report.check(thread.name.startswith("asyncbridge-"), f"a thread stayed: {thread!r}")
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.format_stack(frame)
    busy = any("tests/stress" in line for line in stack)
    report.check(not busy, f"a worker is still busy: {thread!r}\n{''.join(stack)}")


def _pending_tasks() -> list["asyncio.Task[Any]"]:
    return [found for found in gc.get_objects() if type(found) is asyncio.Task and not found.done()]
