"""For tests: async code in the thread of its test (`home_thread`), and how often a request crosses (`count_crossings`).

Django's ``TestCase`` runs async test methods through ``async_to_sync``, where the thread of the test is home already. pytest-asyncio,
``IsolatedAsyncioTestCase`` and ``asyncio.run`` run the event loop in the thread of the test itself; sync code then runs
in another thread, with a connection that does not see what the test has not committed. `home_thread` makes the thread of the test home
there too. With pytest nothing has to be done: the plugin of this package does it (`pytest_plugin`).

Which thread may touch what. A block of `home_thread` belongs to the thread that enters it; in others `asyncio.run` does what it
always did. A count is added to by any thread, one append at a time.
"""

import asyncio
import contextlib
import functools
import threading
import unittest
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

from django_asyncbridge.bridge import _crossings, _fork, _hosted_loop
from django_asyncbridge.bridge.sync import Crossing, add_observer, remove_observer

__all__ = ("Crossings", "HomeThreadMixin", "count_crossings", "home_thread")

R = TypeVar("R")


@contextlib.contextmanager
def home_thread() -> Generator[None]:
    """Make this thread the home of all async code that it runs with `asyncio.run` or another `asyncio.Runner` in the block.

    Thread-sensitive sync code, such as Django's ORM, then runs in this thread: ``await Model.objects.acount()`` sees the
    open transaction of the test. A block, and a decorator for sync functions. Blocks may be nested.

    Thread and loop: the coroutine begins in this thread. At the first call that needs this thread the event loop moves to a
    worker and stays there until ``Runner.run`` ends; this thread runs the sync calls meanwhile. So code on the loop that asks for its own
    thread may see two. Sync calls that are not thread-sensitive run in other threads, as always. Loops that other
    threads run are not changed, nor are loops that no Runner made.

    Context variables, results, exceptions, cancellation and Ctrl-C: as `asyncio.Runner` has them. Tasks that stay on
    a loop when a run ends go on in its next one.

    Source: pytest-django issue 580.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


if TYPE_CHECKING:
    _Base = unittest.TestCase
else:
    _Base = object


class HomeThreadMixin(_Base):
    """A test case whose tests, set-ups and clean-ups run under `home_thread`.

    It comes first among the bases: ``class BookTests(HomeThreadMixin, IsolatedAsyncioTestCase)``.
    """

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test, and record its outcome in `result`."""
        with home_thread():
            return super().run(result)

    def debug(self) -> None:
        """Run the test without recording anything: its exception is raised."""
        with home_thread():
            super().debug()


class Crossings:
    """What `count_crossings` has seen.

    Attributes:
        all: the crossings, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.all: list[Crossing] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.all)

    def _note(self, crossing: Crossing) -> None:
        if self in _crossings.tags.get():
            self.all.append(crossing)

    def __repr__(self) -> str:
        names = ", ".join(str(getattr(one.function, "__qualname__", one)) for one in self.all)
        return f"<Crossings: {self.count} ({names})>"


@contextlib.contextmanager
def count_crossings() -> Generator[Crossings]:
    """Count the crossings between event loop and threads that the code in the block makes.

    Example::

        with count_crossings() as crossings:
            asyncio.run(get(application, "/"))
        assert crossings.count <= 1, crossings

    Of the block is what runs in its context: the calls in it, tasks they start, threads they cross to. Not
    other requests, nor a server that was started before. Each call of `sync_to_async` and `async_to_sync` that is not run right
    where it is called counts once, also of Django's and asgiref's while they are accelerated. Blocks may be nested.
    """
    crossings = Crossings()
    observe = crossings._note
    add_observer(observe)
    token = _crossings.tags.set((*_crossings.tags.get(), crossings))
    try:
        yield crossings
    finally:
        _crossings.tags.reset(token)
        remove_observer(observe)


# --- asyncio.Runner ----------------------------------------------------------------

_lock = threading.RLock()
# How many blocks there are in all threads, and what asyncio.Runner has outside. Kept: another thread may still be on its way.
_entered = 0
_replaced = False
_originals: dict[str, Callable[..., Any]] = {}


def _get_loop(runner: asyncio.Runner) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = _originals["get_loop"](runner)
    if _hosted_loop.here.depth:
        _hosted_loop.hosted_of(loop)
    return loop


def _run_in_runner(
    runner: asyncio.Runner, coro: Coroutine[Any, Any, R], *, context: Context | None = None
) -> R:
    run: Callable[[], R] = functools.partial(_originals["run"], runner, coro, context=context)
    if _hosted_loop.here.depth == 0 or asyncio._get_running_loop() is not None:
        return run()
    hosted = _hosted_loop.hosted_of(runner.get_loop())
    if hosted is None:
        return run()
    # Private; but the context that the Runner gives its tasks is told nowhere else.
    return hosted.run_in(getattr(runner, "_context", None) if context is None else context, run)


_REPLACED: dict[str, Callable[..., Any]] = {"get_loop": _get_loop, "run": _run_in_runner}


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.RLock()


def _enter() -> None:
    """Make this thread the home of what `asyncio.Runner` runs in it from now on."""
    global _entered, _replaced
    with _lock:
        if not _replaced:
            _replaced = True
            for name, ours in _REPLACED.items():
                _originals[name] = getattr(asyncio.Runner, name)
                setattr(asyncio.Runner, name, ours)
        _entered += 1
        _hosted_loop.here.depth += 1


def _leave() -> None:
    """End the latest `_enter` of this thread."""
    global _entered, _replaced
    with _lock:
        _entered -= 1
        _hosted_loop.here.depth -= 1
        # Somebody who came after us stays, and we below: that does nothing any more.
        if _entered or any(getattr(asyncio.Runner, n) is not one for n, one in _REPLACED.items()):
            return
        _replaced = False
        for name, original in _originals.items():
            setattr(asyncio.Runner, name, original)


_fork.on_fork(_reset_after_fork)
