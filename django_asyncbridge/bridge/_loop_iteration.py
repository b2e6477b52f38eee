"""`Driver`: an async iterable on its event loop, and the steps by which sync code has it advanced.

Theory of operation. An async generator has to be advanced on one event loop and in one task: what it holds across a
``yield`` (a timeout, a task group, a connection) knows both. So a task, the *driver*, lives as long as the iteration,
and sync code makes requests to it, each by an `AsyncToSync` call of `Driver.step`. Where an event loop waits for
the calling thread, the driver is a task of that loop. Elsewhere it gets an `IterationLoop`, in a thread of its own, and
during each step the calling thread is marked as one that this loop waits for: so `AsyncToSync` runs the step
there, and thread-sensitive calls below find the calling thread as their home.

The iterable runs in one context, the driver's. At each step it is given the caller's variables (among them, who
waits), and the caller is given what the iterable has changed.

Which thread may touch what. `Driver` belongs to the thread of its loop, except `over` and `take_answer`, for the
caller while it runs no step, and `abandon`, for anybody. `IterationLoop` belongs to the caller, except `_run`.

Source: promises P1-P7; field failure C62.
"""

import asyncio
import atexit
import contextlib
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from django_asyncbridge.bridge import _fork, _state, _wrapping
from django_asyncbridge.bridge._iterating import Changes, Variables, Watch, close_method, to_the_end

__all__ = ("Answer", "Driver", "IterationLoop", "Request")

Y = TypeVar("Y")

# Generators that are open when the interpreter ends have this long to close. Not measured.
_EXIT_SECONDS = 1.0

_numbers = itertools.count(1)


class Answer(NamedTuple):
    """What came of a step: an item, or the end, which may be an error; and the changed context variables."""

    over: bool
    item: Any = None
    error: BaseException | None = None
    changes: Changes = None


#: What to raise in the iterable: None for nothing, and the next item; GeneratorExit to close it.
Request = BaseException | None


class Driver(Generic[Y]):
    """An async iterable that sync code advances.

    Args:
        iterable: what to iterate over.

    Attributes:
        over: whether the iteration has come to its end.
        own: the loop that is there for this iteration alone, if there is one.
    """

    def __init__(self, iterable: AsyncIterable[Y]) -> None:
        self.over = False
        self.own: IterationLoop | None = None
        self._answer: Answer | None = None
        self._described = _wrapping.describe(iterable)
        self._iterable: AsyncIterable[Y] | None = iterable
        self._iterator: AsyncIterator[Y] | None = None
        self._variables = Variables()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._step: asyncio.Task[Any] | None = None
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._answered: asyncio.Future[None] | None = None
        self._given_up = False

    async def step(self, request: Request) -> None:
        """Have the iterable advanced; in a task of the driver's loop, in the caller's context.

        Cancelling it cancels what the iterable is waiting for, and ends the iteration.

        Raises:
            RuntimeError: when the loop of the earlier steps has ended.
        """
        __traceback_hide__ = True
        loop = asyncio.get_running_loop()
        if self.over or self._loop not in (None, loop):
            raise RuntimeError(
                f"the event loop on which the iteration over {self._described} was begun has ended, and with it "
                "the iteration; iterate to the end inside the call that began it"
            )
        self._loop, self._step = loop, asyncio.current_task()
        self._variables.follow()
        self._answer, self._answered = None, loop.create_future()
        if self._task is None:
            self._task = loop.create_task(self._drive(), context=self._variables.context)
        caller = getattr(_state.executors, "current", None)
        if self.own is not None and caller is not None:
            # For tasks that the iterable has started in earlier steps.
            _state.loop_thread_executors[loop] = caller
        self._requests.put_nowait(request)
        try:
            await self._wait(self._task, self._answered)
        finally:
            if self.own is not None:
                _state.loop_thread_executors.pop(loop, None)
            # An error that was thrown in has this frame in its traceback.
            del request, self

    async def _wait(self, task: "asyncio.Task[None]", answered: "asyncio.Future[None]") -> None:
        try:
            await asyncio.wait([answered])
        except asyncio.CancelledError as cancelled:
            self._given_up = True
            task.cancel()
            await to_the_end(answered)
            lost = None if self._answer is None else self._answer.error
            try:
                if isinstance(lost, Exception):
                    raise cancelled from lost
            finally:
                # The error's traceback refers to this frame; nothing may lead from here back to the error.
                del lost
            raise

    def take_answer(self) -> Answer | None:
        """Return what came of the step, and give the caller's context what the iterable changed; in the calling thread."""
        answer, self._answer = self._answer, None
        if answer is not None:
            self._variables.take_over(answer.changes)
        return answer

    async def _drive(self) -> None:
        """Answer requests until the end; the driver's task."""
        try:
            while not self.over:
                await self._answer_to(await self._requests.get())
        except asyncio.CancelledError as cancelled:
            # Between two steps: the loop ends. A step that came just now must not take this for the end of the iterable.
            await self._answer_to(GeneratorExit(), cancelled)
            raise

    async def _answer_to(self, request: Request, error: BaseException | None = None) -> None:
        watch = Watch()
        answer = await self._outcome(request)
        try:
            # One that survived its cancellation has made an item for which nobody waits any more.
            if answer.over or self._given_up:
                answer = await self._end(answer)
            if error is not None and answer.error is None:
                answer = answer._replace(error=error)
            if self._answered is not None and not self._answered.done():
                self._answer = answer._replace(changes=watch.changes())
                self._answered.set_result(None)
            elif isinstance(answer.error, Exception):
                self._report("error in an iteration that nobody waits for any more", answer.error)
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del answer, request, error

    async def _outcome(self, request: Request) -> Answer:
        """Advance the iterable."""
        try:
            return Answer(over=False, item=await self._advance(request))
        except StopAsyncIteration:
            return Answer(over=True)
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller
            return Answer(over=True, error=error)
        finally:
            del request, self

    async def _advance(self, request: Request) -> Y:
        __traceback_hide__ = True
        try:
            if isinstance(request, GeneratorExit):
                raise StopAsyncIteration
            if self._iterator is None:
                assert self._iterable is not None
                self._iterator = aiter(self._iterable)
            if request is None:
                return await anext(self._iterator)
            if not isinstance(self._iterator, AsyncGenerator):
                raise request
            item: Y = await self._iterator.athrow(request)
            return item
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del request, self

    async def _end(self, answer: Answer) -> Answer:
        """Close the iterable, and whatever else is left on a loop of its own."""
        self.over = True
        iterable, self._iterable = self._iterable, None
        iterator, self._iterator = self._iterator, None
        try:
            close = close_method(iterable, iterator, "aclose")
            if close is not None:
                await close()
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller
            answer = answer._replace(error=error)
        answer = answer._replace(over=True)
        if self.own is not None:
            await self._clean_up(self.own)
        try:
            return answer
        finally:
            del answer

    async def _clean_up(self, own: "IterationLoop") -> None:
        """Cancel and await what tasks are left, and close generators; the caller still serves its thread."""
        loop = asyncio.get_running_loop()
        left = asyncio.all_tasks(loop) - {self._task, self._step, own.task}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        for task in left:
            if not task.cancelled() and task.exception() is not None:
                self._report("error in a task that an iteration left behind", task.exception())
        await loop.shutdown_asyncgens()

    def _report(self, message: str, error: BaseException | None) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{message}: {self._described}", "exception": error}
        )

    def abandon(self) -> None:
        """Have the iteration, and its own loop, ended without waiting for that; in any thread.

        A step that is under way is cancelled.
        """
        loop = self._loop if self.own is None else self.own.loop
        if loop is not None:
            # RuntimeError: the loop is closed, and what ran on it with it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._abandon)

    def _abandon(self) -> None:
        own = self.own
        if self._task is not None and not self._task.done():
            self._given_up = True
            self._task.cancel()
            if own is not None:
                self._task.add_done_callback(lambda _: own.stop())
        elif own is not None:
            own.stop()


class IterationLoop:
    """An event loop in a thread of its own, for an iteration that no loop waits for.

    Attributes:
        loop: the loop, which runs.
        task: the task that ends when the loop is to end.

    Raises:
        RuntimeError: when no thread can start any more (interpreter shutdown, a limit).
        OSError: when no loop can be made.
    """

    loop: asyncio.AbstractEventLoop
    task: "asyncio.Task[Any] | None"

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        started: Future[None] = Future()
        name = f"asyncbridge-iteration-{next(_numbers)}"
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        started.result()

    def _run(self, started: "Future[None]") -> None:
        _running.add(self)
        try:
            # With a factory the runner leaves the thread's current event loop alone.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.get_loop().run_until_complete(self._main(started))
        except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
            if started.done():
                self._error = error
            else:
                started.set_exception(error)
        finally:
            _running.discard(self)

    async def _main(self, started: "Future[None]") -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        # Not earlier: only a running loop takes calls.
        started.set_result(None)
        await self._stop.wait()

    def stop(self) -> None:
        """End the loop, without waiting for that; in any thread, any number of times."""
        # RuntimeError: it has ended.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._stop.set)

    def join(self, timeout_seconds: float | None = None) -> None:
        """Wait for the end of the thread, once the loop has been told to end.

        Raises:
            BaseException: what ended the loop itself, such as SystemExit in a task.
        """
        self._thread.join(timeout_seconds)
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del error


_running: set[IterationLoop] = set()
# Kept, as their finalizers would find them not closed.
_of_parent: list[IterationLoop] = []


def _disown() -> None:
    _of_parent.extend(_running)
    _running.clear()


def _stop_at_exit() -> None:
    for own in tuple(_running):
        own.stop()
        own.join(_EXIT_SECONDS)


atexit.register(_stop_at_exit)
_fork.on_fork(_disown)
