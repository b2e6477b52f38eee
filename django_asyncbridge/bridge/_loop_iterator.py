"""`LoopIterator`: an async iterable as a sync iterator; how it is advanced is in `_loop_iteration`.

Which thread may touch what. A `LoopIterator` belongs to the thread that asks for the first item; `__del__` runs in any.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from django_asyncbridge.bridge import _fork, _state, _wrapping
from django_asyncbridge.bridge._async_to_sync import AsyncToSync
from django_asyncbridge.bridge._iterating import error_of, named
from django_asyncbridge.bridge._loop_iteration import Answer, Driver, IterationLoop, Request

__all__ = ("LoopIterator",)

Y = TypeVar("Y")


class LoopIterator(Iterator[Y]):
    """The iterator that `iterate_on_loop` returns; also a context manager that closes it.

    Close it, or iterate to the end: ``with`` does, and ``contextlib.closing``. One that is dropped in the middle
    has its generator closed on its event loop, soon, with nobody waiting for that.

    It belongs to the thread that asks for the first item.
    """

    def __init__(self, iterable: AsyncIterable[Y], force_new_loop: bool) -> None:
        self._described = _wrapping.describe(iterable)
        self._driver: Driver[Y] = Driver(iterable)
        self._force_new_loop = force_new_loop
        # None: never begun.
        self._step: AsyncToSync[[Request], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own: IterationLoop | None = None
        self._thread: threading.Thread | None = None
        self._epoch, self._pid = _fork.epoch(), _fork.pid()
        self._running = self._over = False

    def __next__(self) -> Y:
        """Wait for the next item.

        Cancellation: as of an `async_to_sync` call; it ends the iteration.

        Raises:
            RuntimeError: in another thread than the one that began; in a thread that runs an event loop; when the
                event loop of the iteration has ended.
            ValueError: when called from inside the iteration.
        """
        __traceback_hide__ = True
        if self._over:
            raise StopIteration
        return self._advance(None)

    def throw(
        self,
        error: BaseException | type[BaseException],
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Y:
        """Raise `error` in an async generator where it stands, and wait for its next item.

        An iterator that is no generator ends with the error. The arguments are those of `ThreadIterator.athrow`.
        """
        __traceback_hide__ = True
        try:
            error = error_of(error, value)
            value = None
            if self._step is None:
                # Nothing has run that could handle it.
                self._over = True
            if self._over:
                raise error
            return self._advance(error)
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del error, value

    def close(self) -> None:
        """End the iteration, and close the async generator on its event loop. Again does nothing.

        What was never begun is left as it is.

        Raises:
            RuntimeError: as `__next__`.
            BaseException: what the generator raises when it is closed.
        """
        if self._step is None or self._driver.over:
            self._release()
        else:
            with contextlib.suppress(StopIteration):
                self._advance(GeneratorExit())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._step is not None and not self._driver.over and self._epoch == _fork.epoch():
            self._driver.abandon()

    def _advance(self, request: Request) -> Y:
        __traceback_hide__ = True
        self._refuse_wrong_place()
        answer: Answer | None = None
        try:
            answer = self._answer_to(request)
            if answer.error is not None:
                raise answer.error
            if answer.over:
                raise StopIteration
            item: Y = answer.item
            return item
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del request, answer, self

    def _answer_to(self, request: Request) -> Answer:
        step = self._step or self._begin()
        caller = _state.caller_of_thread()
        self._running = True
        try:
            if self._own is not None:
                # The tasks that this thread waits for stay those of its caller, whose cancellation goes to them.
                _state.set_caller_of_thread((self._loop, _fork.pid(), caller[2]))
            step(request)
        except BaseException:
            # Cancelled or interrupted, so nobody knows how far it came.
            self._over = True
            raise
        finally:
            _state.set_caller_of_thread(caller)
            self._running = False
            answer = self._driver.take_answer()
            if self._driver.over:
                self._release()
            elif self._over:
                self._driver.abandon()
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del request, step, self
        assert answer is not None
        return answer

    def _begin(self) -> AsyncToSync[[Request], None]:
        """Settle on a thread and a loop."""
        loop = None if self._force_new_loop else _state.calling_loop()
        if loop is None or not loop.is_running():
            self._own = self._driver.own = IterationLoop()
            loop = self._own.loop
        self._loop = loop
        self._thread = threading.current_thread()
        driver = self._driver

        async def step(request: Request) -> None:
            __traceback_hide__ = True
            await driver.step(request)

        self._step = AsyncToSync(named(step, self._described))
        return self._step

    def _release(self) -> None:
        self._over = True
        own, self._own = self._own, None
        if own is not None:
            own.stop()
            own.join()

    def _refuse_wrong_place(self) -> None:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"the iteration over {self._described} would block the event loop that runs in this thread; "
                "use 'async for' here, without the bridge"
            )
        if self._running:
            raise ValueError(f"the iteration over {self._described} is already executing")
        if self._step is None:
            return
        here = threading.current_thread()
        if here is not self._thread or self._epoch != _fork.epoch():
            raise RuntimeError(
                f"the iteration over {self._described} was begun in {getattr(self._thread, 'name', None)}, "
                f"process {self._pid}, and cannot go on in {here.name}, process {_fork.pid()}; iterate in one thread"
            )
        if self._own is None and self._loop is not _state.calling_loop():
            raise RuntimeError(
                f"the iteration over {self._described} was begun in a call from an event loop that does not wait "
                "for this thread any more; iterate to the end inside that call"
            )
