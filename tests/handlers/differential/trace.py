"""What happens on a request's way, in order: hooks, views, signals, templates, log records, warnings.

Everything of the site tells `note`, which adds a line to the list of the request under way. A line ends with the colour of the
context, a context variable that some shapes of middleware set: so any loss of a context shows.

Hard rules. One request at a time. Nothing in a line depends on the handler, the thread, the time or chance.

Which thread may touch what. Any thread may note; `begin` and `listening` are for the thread of the test.
"""

import asyncio
import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from asgiref.sync import markcoroutinefunction
from django.core.signals import got_request_exception, request_finished, request_started
from django.dispatch import Signal
from django.test.signals import template_rendered

__all__ = (
    "begin",
    "close_later",
    "colour",
    "colour_of",
    "coloured",
    "describe",
    "end",
    "keep",
    "keeping",
    "listening",
    "note",
    "notebook",
    "without_colour",
)

T = TypeVar("T")
colour: ContextVar[str] = ContextVar("colour", default="")
LOGGERS = {"django": logging.DEBUG, "django_asyncbridge": logging.DEBUG, "asyncio": logging.WARNING}
# Its records tell how long queries took.
SILENT = "django.db"
_COLOUR = " | colour "

_lines: list[str] = []
_kept: list[Any] = []


def note(who: str, what: str, *details: object) -> None:
    """Add a line to the trace of the request under way."""
    line = f"{who}: {' '.join(map(str, (what, *details)))}"
    seen = colour.get()
    _lines.append(coloured(line, seen) if seen else line)


def notebook() -> Callable[..., None]:
    """Return a function like `note` for the request that is under way now.

    It is for what may be closed by the garbage collector, whenever that comes by.
    """
    lines = _lines

    def note_there(*what: object) -> None:
        if lines is _lines:
            note(*map(str, what))

    return note_there


def begin() -> list[str]:
    """Begin the trace of another request, and return it."""
    global _lines
    _lines = []
    return _lines


def keep(answer: T) -> T:
    """Return what a call returned; if that is a coroutine, `end` closes it.

    Maybe nobody will ever await it. Python would complain whenever the garbage collector comes by.
    """
    if asyncio.iscoroutine(answer):
        _kept.append(answer)
    return answer


def keeping(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Return a coroutine function of which each coroutine is kept."""

    @functools.wraps(function)
    def call(*args: Any) -> Coroutine[Any, Any, Any]:
        return keep(function(*args))

    return markcoroutinefunction(call)


def close_later(file: Any) -> None:
    """Have `end` close a file that Django's handler leaves open when it raises."""
    _kept.append(file)


def end() -> None:
    """Close what was kept."""
    while _kept:
        _kept.pop().close()


def coloured(line: str, seen: str) -> str:
    """Return a line of a trace as it would be in a context with a colour."""
    return f"{line}{_COLOUR}{seen}"


def colour_of(line: str) -> str:
    """Return the colour of a line of a trace; empty if it has none."""
    return line.partition(_COLOUR)[2]


def without_colour(line: str) -> str:
    """Return a line of a trace as it would be in a context without a colour."""
    return line.partition(_COLOUR)[0]


def describe(thing: object) -> str:
    """Name what a hook was given, so that the same is the same line under either handler."""
    status = getattr(thing, "status_code", None)
    name = type(thing).__name__
    if status is not None:
        return f"{name} {status}"
    if isinstance(thing, BaseException):
        # Whether it is being handled as well is for `sys.exc_info`.
        return f"{name} handled {type(sys.exception()).__name__}"
    return name


# --- Listening ---------------------------------------------------------------------


class Listener(logging.Handler):
    """Notes log records."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        note(
            "log",
            record.name,
            record.levelname,
            record.getMessage(),
            getattr(record, "status_code", None),
            "request" if hasattr(record, "request") else "no request",
            error.__name__ if error else "no error",
        )


@contextlib.contextmanager
def listening(async_receivers: bool = False) -> Iterator[None]:
    """Note log records, warnings, and signals with sync receivers or with async ones."""
    with contextlib.ExitStack() as stack:
        for name, level in LOGGERS.items():
            stack.enter_context(_heard(logging.getLogger(name), level))
        stack.enter_context(_quiet(logging.getLogger(SILENT)))
        stack.enter_context(_noted_warnings())
        for signal, receiver in _receivers(async_receivers):
            signal.connect(receiver, weak=False)
            stack.callback(signal.disconnect, receiver)
        stack.callback(end)
        yield


@contextlib.contextmanager
def _heard(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [Listener()], False
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _noted_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # These come when the garbage collector does.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.showwarning = _note_warning
        yield


def _note_warning(
    message: Warning | str, category: type[Warning], *_where: object, **_kwargs: object
) -> None:
    note("warning", category.__name__, message)


def _receivers(as_async: bool) -> list[tuple[Signal, Callable[..., Any]]]:
    """Return a receiver for each signal of a request's; templates are rendered by sync code, and heard by it."""
    named = {
        "request_started": request_started,
        "request_finished": request_finished,
        "got_request_exception": got_request_exception,
    }
    make = _async_receiver if as_async else _sync_receiver
    found = [(signal, make(name)) for name, signal in named.items()]
    return [*found, (template_rendered, _note_template)]


def _sync_receiver(name: str) -> Callable[..., Any]:
    def receive(**given: Any) -> None:
        _note_signal(name, given)

    return receive


def _async_receiver(name: str) -> Callable[..., Any]:
    async def receive(**given: Any) -> None:
        _note_signal(name, given)

    return receive


def _note_signal(name: str, given: dict[str, Any]) -> None:
    sender = getattr(given.pop("sender"), "__name__", None)
    note("signal", name, sender, sorted(given), type(sys.exception()).__name__)


def _note_template(template: Any, **_given: Any) -> None:
    note("signal", "template_rendered", template.name)
