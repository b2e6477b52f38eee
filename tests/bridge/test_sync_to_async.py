"""`SyncToAsync`: where each call goes, what it is there, and how it ends when it is closed by hand."""

import asyncio
import contextvars
import functools
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._work import Work
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from tests.bridge import ManualExecutor, hand_driven_loop, turn, wait
from tests.support import run_child, run_in_thread

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
other: contextvars.ContextVar[Any] = contextvars.ContextVar("other")

current_thread = sync_to_async(threading.current_thread)


def must_not_run() -> NoReturn:
    raise AssertionError("it ran")


class ManualHome:
    """The process's shared thread, which comes to its work when the test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.executor = ManualExecutor()
        patch.setattr(SyncToAsync, "single_thread_executor", self.executor)

    def run_next(self) -> None:
        run_in_thread(self.executor.run_next)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> ManualHome:
    return ManualHome(monkeypatch)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- Making one ------------------------------------------------------------------


def sync_function(first: int, second: int = 0) -> int:
    """Add them up."""
    return first + second


class CallableObject:
    """A callable object."""

    def __call__(self, first: int) -> int:
        return first


class Methods:
    """Each kind of method, wrapped."""

    @sync_to_async
    def plain(self, first: int) -> tuple[object, int]:
        """Return what it is given."""
        return self, first

    @classmethod
    @sync_to_async
    def of_class(cls, first: int) -> tuple[object, int]:
        return cls, first

    @staticmethod
    @sync_to_async
    def static(first: int) -> int:
        return first

    wrapped_static = sync_to_async(staticmethod(sync_function))


@pytest.mark.parametrize(
    "function",
    [sync_function, functools.partial(sync_function, second=0), CallableObject(), abs],
    ids=["function", "partial", "object", "builtin"],
)
def test_sync_to_async_runs_functions_partials_objects_and_builtins(
    function: Callable[[int], int],
) -> None:
    assert asyncio.run(sync_to_async(function)(1)) == 1


def test_sync_to_async_decorates_with_and_without_arguments() -> None:
    @sync_to_async
    def bare() -> str:
        return threading.current_thread().name

    @sync_to_async(thread_sensitive=False, executor=(pool := ThreadPoolExecutor(1, "mine")))
    def with_arguments() -> str:
        return threading.current_thread().name

    with pool:
        assert asyncio.run(bare()).startswith("asyncbridge-shared")
        assert asyncio.run(with_arguments()).startswith("mine")


def test_sync_to_async_binds_as_what_it_wraps() -> None:
    instance: Any = Methods()
    assert asyncio.run(instance.plain(1)) == (instance, 1)
    assert asyncio.run(Methods.plain(instance, 1)) == (instance, 1)
    assert asyncio.run(instance.of_class(1)) == asyncio.run(Methods.of_class(1)) == (Methods, 1)
    assert asyncio.run(instance.static(1)) == asyncio.run(Methods.static(1)) == 1
    assert asyncio.run(instance.wrapped_static(1, 2)) == 3
    assert instance.plain.__name__ == "plain"
    assert instance.plain.__doc__ == "Return what it is given."


def test_sync_to_async_of_a_bound_method_knows_its_instance() -> None:
    word = "a"
    wrapper: Any = sync_to_async(word.upper)
    assert wrapper.__self__ is word
    assert wrapper.func == word.upper
    assert asyncio.run(wrapper()) == "A"


async def async_function() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    "unfit",
    [async_function, 5, classmethod(callable)],
    ids=["async", "no_function", "classmethod"],
)
def test_sync_to_async_refuses_what_is_no_sync_function(unfit: Any) -> None:
    with pytest.raises(TypeError, match="can only be applied to sync functions"):
        sync_to_async(unfit)


def test_sync_to_async_refuses_to_abandon_a_thread_sensitive_function() -> None:
    with pytest.raises(TypeError, match="pass thread_sensitive=False"):
        SyncToAsync(sync_function, thread_sensitive=True, abandon_on_cancel=True)


def test_sync_to_async_refuses_an_executor_for_a_thread_sensitive_function() -> None:
    with pytest.raises(TypeError, match="pass thread_sensitive=False"):
        SyncToAsync(sync_function, thread_sensitive=True, executor=ManualExecutor())


# --- Where it runs ---------------------------------------------------------------


def test_call_that_is_not_thread_sensitive_runs_in_its_executor_or_a_reused_worker() -> None:
    async def main() -> list[str]:
        loops = ThreadPoolExecutor(1, "default")
        asyncio.get_running_loop().set_default_executor(loops)
        name = lambda: threading.current_thread().name  # noqa: E731  # a function of this test
        with ThreadPoolExecutor(1, "mine") as mine:
            return [
                await sync_to_async(name, thread_sensitive=False)(),
                await sync_to_async(name, thread_sensitive=False, executor=mine)(),
            ]

    ours, mine = asyncio.run(main())
    assert ours.startswith("asyncbridge-default-")
    assert mine.startswith("mine")


def test_call_goes_home_to_the_sync_caller_then_the_context_then_the_shared_thread() -> None:
    async def inner() -> object:
        return await current_thread()

    async def main() -> None:
        shared = await current_thread()
        async with ThreadSensitiveContext():
            own = await current_thread()
            assert await sync_to_async(async_to_sync(inner))() is own
        assert await current_thread() is shared
        assert shared is not own

    asyncio.run(main())


def test_call_of_a_task_with_a_context_of_its_own_goes_home_to_the_loops_sync_caller() -> None:
    async def main() -> object:
        loop = asyncio.get_running_loop()
        return await loop.create_task(current_thread(), context=contextvars.Context())

    assert async_to_sync(main)() is threading.current_thread()


def test_call_whose_sync_caller_goes_in_this_moment_runs_where_is_home_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits when the call looks for its home, and has gone when the call is submitted."""
    ended: list[CurrentThreadExecutor] = []
    post = CurrentThreadExecutor.post

    def go_first(executor: CurrentThreadExecutor, work: Work) -> None:
        ended.append(executor)
        executor._close()
        post(executor, work)

    async def main() -> object:
        token = await sync_to_async(variable.set)("set")
        caller = CurrentThreadExecutor(None)
        _state.executors.current = caller
        monkeypatch.setattr(CurrentThreadExecutor, "post", go_first)
        thread = await current_thread()
        assert ended == [caller]
        # The call that did not come off has left nothing behind.
        assert not _state.deadlock_context.get(False)
        await sync_to_async(variable.reset)(token)
        assert variable not in contextvars.copy_context()
        return thread

    assert cast("threading.Thread", asyncio.run(main())).name.startswith("asyncbridge-shared")


def test_call_to_the_shared_thread_from_that_thread_is_reported_as_a_deadlock() -> None:
    """An event loop was started inside a sync function, which holds the thread."""

    def view() -> None:
        with pytest.raises(RuntimeError, match="would deadlock"):
            asyncio.run(current_thread())
        with pytest.raises(RuntimeError, match="would deadlock"):
            contextvars.Context().run(asyncio.run, current_thread())

    asyncio.run(sync_to_async(view)())


def test_call_from_the_thread_of_a_sync_caller_that_waits_is_reported_as_a_deadlock() -> None:
    def view() -> None:
        with pytest.raises(RuntimeError, match="submitted from that thread itself"):
            asyncio.run(current_thread())

    async_to_sync(sync_to_async(view))()


def test_call_below_one_that_holds_the_shared_thread_is_told_who_holds_it(
    home: ManualHome,
) -> None:
    def view(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.run_coroutine_threadsafe(current_thread(), loop).result(10)

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(view)(asyncio.get_running_loop()))
        await turns()
        await asyncio.to_thread(home.run_next)
        with pytest.raises(RuntimeError, match=r"is running .*\.view, from which"):
            await task

    asyncio.run(main())


def test_call_refused_for_asgirefs_mark_of_a_held_thread_says_so() -> None:
    """asgiref's own calls put True into the same variable."""

    async def main() -> None:
        token = _state.deadlock_context.set(True)
        with pytest.raises(RuntimeError, match="is running another call"):
            await current_thread()
        _state.deadlock_context.reset(token)

    asyncio.run(main())


def test_call_of_a_task_whose_context_another_one_uses_is_not_taken_for_a_deadlock(
    home: ManualHome,
) -> None:
    """P4: two receivers of `Signal.asend` share a context; neither was started by the other's call."""

    async def main() -> list[Any]:
        loop, shared = asyncio.get_running_loop(), contextvars.copy_context()
        tasks = [loop.create_task(sync_to_async(abs)(-1), context=shared) for _ in range(2)]
        await turns()
        while home.executor.queue:
            home.run_next()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert asyncio.run(main()) == [1, 1]


# --- What the function sees ------------------------------------------------------


def test_call_shows_its_loop_and_its_tasks_to_the_handler_and_puts_back_what_was_there() -> None:
    local = _state.threadlocal
    names = ("main_event_loop", "main_event_loop_pid", "task_context")

    def state() -> list[object]:
        return [getattr(local, name, None) for name in names]

    def inside() -> object:
        return state()[0]

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            before = pool.submit(state).result(10)
            call = sync_to_async(inside, thread_sensitive=False, executor=pool)
            assert await call() is asyncio.get_running_loop()
            assert pool.submit(state).result(10) == before

    asyncio.run(main())


def test_call_of_a_subclass_gives_its_handler_the_arguments_that_asgiref_gives() -> None:
    seen: list[tuple[Any, ...]] = []

    class Mine(SyncToAsync[Any, Any]):
        def thread_handler(self, loop: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((loop, *args, kwargs))
            return super().thread_handler(loop, *args, **kwargs)

    async def main() -> None:
        assert await Mine(sync_function)(1, second=2) == 3
        ((loop, exc_info, task_context, func, child, kwargs),) = seen
        assert loop is asyncio.get_running_loop()
        assert exc_info == (None, None, None)
        assert task_context == []
        assert callable(func)
        assert (child.func, child.args, child.keywords) == (sync_function, (1,), {"second": 2})
        assert kwargs == {}

    asyncio.run(main())


def test_call_while_an_exception_is_handled_shows_it_and_does_not_change_it() -> None:
    async def main() -> list[object]:
        try:
            raise KeyError("handled")
        except KeyError as error:
            before = error, error.__traceback__, error.__context__
            seen = await sync_to_async(lambda: sys.exc_info()[1])()
            return [before, (seen, error.__traceback__, error.__context__)]

    before, after = asyncio.run(main())
    assert before == after


def test_call_while_an_exception_is_handled_does_not_chain_it_to_one_of_the_thread() -> None:
    """P2: the thread that runs the function may be waiting inside an except block of its own."""

    async def main() -> BaseException | None:
        # The event loop leaves the thread that handles the other exception.
        assert await current_thread() is not threading.current_thread()
        try:
            raise KeyError("the task's")
        except KeyError as error:
            await sync_to_async(abs)(-1)
            return error.__context__

    async def outer() -> BaseException | None:
        return await asyncio.create_task(main())

    try:
        raise ValueError("the thread's")
    except ValueError:
        assert async_to_sync(outer)() is None


class FrozenError(Exception):
    """As a frozen dataclass makes it."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AssertionError(f"assigned to {name!r}")


def test_call_while_an_exception_is_handled_that_cannot_be_changed_works() -> None:
    async def main() -> int:
        try:
            raise FrozenError
        except FrozenError:
            return await sync_to_async(abs)(-1)

    assert asyncio.run(main()) == 1


# --- Context variables -----------------------------------------------------------


def test_call_with_a_context_of_its_own_runs_there() -> None:
    async def main() -> None:
        context = contextvars.Context()
        call = sync_to_async(variable.set, context=context)
        assert call.context is context  # type: ignore[attr-defined]  # asgiref's attribute
        await call("in the context")
        assert variable not in contextvars.copy_context()
        assert context[variable] == "in the context"

    asyncio.run(main())


def test_call_with_a_context_in_use_by_another_call_is_told_so() -> None:
    context = contextvars.Context()
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        wait(release)

    async def main() -> None:
        with ThreadPoolExecutor(2) as pool:
            options: Any = {"thread_sensitive": False, "executor": pool, "context": context}
            first = asyncio.create_task(sync_to_async(hold, **options)())
            await asyncio.to_thread(wait, begun)
            with pytest.raises(RuntimeError, match=r"context\.copy\(\)"):
                await sync_to_async(must_not_run, **options)()
            release.set()
            await first

    asyncio.run(main())


def test_token_of_a_call_in_one_thread_resets_in_a_call_in_another() -> None:
    """P3: neither the home thread nor what the bridge keeps in the context makes a difference."""

    async def main() -> None:
        for home in (True, False):
            token = await sync_to_async(variable.set, thread_sensitive=home)("set")
            await sync_to_async(variable.reset, thread_sensitive=not home)(token)
            assert variable not in contextvars.copy_context()

    asyncio.run(main())


def test_token_of_a_call_resets_after_calls_that_failed_or_were_withdrawn(
    home: ManualHome,
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as ended:
            elsewhere = sync_to_async(variable.set, thread_sensitive=False)
        token = await elsewhere("set")
        with pytest.raises(RuntimeError, match="shutdown"):
            await sync_to_async(must_not_run, thread_sensitive=False, executor=ended)()
        # In the same task: wait_for() of Python 3.11 makes another one.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await sync_to_async(must_not_run)()
        home.run_next()
        await sync_to_async(variable.reset, thread_sensitive=False)(token)
        assert variable not in contextvars.copy_context()

    asyncio.run(main())


# --- Stepped by hand -------------------------------------------------------------


class Stepped:
    """A call that is stepped by hand, in a loop and a context, but in no task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, Any]) -> None:
        self.loop = loop
        self.coroutine = call

    def step(self, do: Callable[[Coroutine[Any, Any, Any]], Any] | None = None) -> Any:
        """Do something with the coroutine, as a callback of the loop."""
        outcome: list[Any] = []

        def callback() -> None:
            try:
                outcome.append((do or (lambda coroutine: coroutine.send(None)))(self.coroutine))
            except StopIteration as stop:
                outcome.append(stop.value)
            except BaseException as error:
                outcome.append(error)

        self.loop.call_soon(callback)
        turn(self.loop)
        return outcome[0]


def test_call_stepped_without_a_task_gives_its_result(home: ManualHome) -> None:
    with hand_driven_loop() as loop:
        stepped = Stepped(loop, sync_to_async(sync_function)(1))
        assert asyncio.isfuture(stepped.step())
        home.run_next()
        turn(loop)
        assert stepped.step() == 1


def test_call_closed_while_it_is_queued_never_runs_and_gives_everything_back(
    home: ManualHome,
) -> None:
    with hand_driven_loop() as loop:
        stepped = Stepped(loop, sync_to_async(must_not_run)())
        stepped.step()
        assert stepped.step(lambda coroutine: coroutine.close()) is None
        home.run_next()
        turn(loop)


def test_call_closed_while_it_runs_runs_to_its_end(home: ManualHome) -> None:
    log: list[str] = []

    def function() -> None:
        log.append("began")
        stepped.coroutine.close()
        log.append("ended")

    with hand_driven_loop() as loop:
        stepped = Stepped(loop, sync_to_async(function)())
        stepped.step()
        home.run_next()
        turn(loop)
    assert log == ["began", "ended"]


def test_call_into_which_a_cancellation_is_thrown_by_hand_is_withdrawn(home: ManualHome) -> None:
    with hand_driven_loop() as loop:
        stepped = Stepped(loop, sync_to_async(must_not_run)())
        stepped.step()
        thrown = asyncio.CancelledError()
        assert stepped.step(lambda coroutine: coroutine.throw(thrown)) is thrown
        home.run_next()
        turn(loop)


class Together:
    """Awaits the calls of one task at the same time, without making tasks of them."""

    def __init__(self, home: ManualHome, *calls: Coroutine[Any, Any, Any]) -> None:
        self.home = home
        self.calls = calls

    def __await__(self) -> Generator[Any, Any, None]:
        futures = [call.send(None) for call in self.calls]
        for _ in futures:
            self.home.run_next()
        yield
        for call, future in zip(self.calls, futures, strict=True):
            assert future.done()
            with pytest.raises(StopIteration):
                call.send(None)


def test_two_calls_of_one_task_at_once_each_bring_back_what_they_changed(home: ManualHome) -> None:
    async def main() -> None:
        wrap: Any = functools.partial(sync_to_async, thread_sensitive=False, executor=home.executor)
        tokens: list[contextvars.Token[Any]] = []
        await Together(home, wrap(lambda: tokens.append(variable.set("set")))())
        # Only the first of them can use the token.
        await Together(home, wrap(variable.reset)(tokens.pop()), wrap(other.set)("two's"))
        assert variable not in contextvars.copy_context()
        assert other.get() == "two's"

    asyncio.run(main())


# --- Cancelled -------------------------------------------------------------------


def test_call_whose_function_raised_after_its_cancellation_names_it_as_the_cause(
    caplog: pytest.LogCaptureFixture, home: ManualHome
) -> None:
    error = ValueError("lost")

    def function() -> NoReturn:
        begun.set()
        wait(cancelled)
        raise error

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await turns()
        running = asyncio.create_task(asyncio.to_thread(home.run_next))
        await asyncio.to_thread(wait, begun)
        task.cancel()
        cancelled.set()
        await running
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.__cause__ is error

    begun, cancelled = threading.Event(), threading.Event()
    asyncio.run(main())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "function raised after its call was cancelled" in record.getMessage()


def test_call_whose_executor_is_broken_gives_the_hold_of_the_shared_thread_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(Executor):
        def submit(self, *args: object, **kwargs: object) -> NoReturn:
            raise OSError("broken")

    async def main() -> None:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", Broken())
        for _ in range(2):
            with pytest.raises(OSError, match="broken"):
                await sync_to_async(must_not_run)()
        assert not _state.deadlock_context.get(False)

    asyncio.run(main())


# --- Executors by name -------------------------------------------------------------


class NamedExecutors:
    """Stands for the Django app: looks names up, and counts how often."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[Executor]] = {}
        self.lookups = 0
        patch.setattr(_state, "resolve_executor", self.resolve)

    def resolve(self, name: str) -> Executor:
        """Return the first executor of that name, or the next one the next time, as long as there are more."""
        self.lookups += 1
        several = self.known[name]
        return several.pop(0) if len(several) > 1 else several[0]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NamedExecutors:
    return NamedExecutors(monkeypatch)


def closed_executor() -> Executor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


@sync_to_async(thread_sensitive=False, executor="mine")
def name_of_thread() -> str:
    return threading.current_thread().name


@sync_to_async(thread_sensitive=False, executor="mine")
def names_of_thread() -> Generator[str, None, None]:
    yield threading.current_thread().name


def test_call_with_a_name_runs_in_the_executor_of_that_name_now(names: NamedExecutors) -> None:
    with ThreadPoolExecutor(1, "first") as first, ThreadPoolExecutor(1, "second") as second:
        names.known["mine"] = [first, second]
        assert asyncio.run(name_of_thread()).startswith("first")
        assert asyncio.run(name_of_thread()).startswith("second")
        assert names.lookups == 2


def test_generator_function_with_a_name_runs_in_the_executor_of_that_name(
    names: NamedExecutors,
) -> None:
    async def main() -> list[str]:
        return [name async for name in names_of_thread()]

    with ThreadPoolExecutor(1, "mine") as executor:
        names.known["mine"] = [executor]
        (name,) = asyncio.run(main())
        assert name.startswith("mine")


def test_call_with_a_name_where_nobody_knows_names_says_who_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_state, "resolve_executor", None)
    with pytest.raises(
        LookupError, match=r"name_of_thread is to run in the executor 'mine', .*INSTALLED"
    ):
        asyncio.run(name_of_thread())


def test_sync_to_async_refuses_a_name_for_a_thread_sensitive_function() -> None:
    refused: Any = sync_to_async
    with pytest.raises(TypeError, match="thread_sensitive=False"):
        refused(threading.current_thread, executor="mine")


def test_call_whose_named_executor_was_shut_down_in_this_moment_runs_in_its_successor(
    names: NamedExecutors,
) -> None:
    with ThreadPoolExecutor(1, "successor") as successor:
        names.known["mine"] = [closed_executor(), successor]
        names.known["mine"][1:1] = [successor]
        assert asyncio.run(name_of_thread()).startswith("successor")


def test_call_whose_named_executor_is_shut_down_for_good_raises_what_it_says(
    names: NamedExecutors,
) -> None:
    names.known["mine"] = [closed_executor()]
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(name_of_thread())
    assert names.lookups == 2


def test_call_whose_named_executor_and_its_successor_are_shut_down_raises_what_it_says(
    names: NamedExecutors,
) -> None:
    first, second, third = (closed_executor() for _ in range(3))
    names.known["mine"] = [first, second, second, third]
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(name_of_thread())
    assert names.known["mine"] == [third]


def test_call_whose_executor_refuses_with_another_error_is_not_submitted_again(
    names: NamedExecutors,
) -> None:
    class Refusing(Executor):
        def submit(self, *args: object, **kwargs: object) -> NoReturn:
            raise OSError("refused")

    names.known["mine"] = [Refusing()]
    with pytest.raises(OSError, match="refused"):
        asyncio.run(name_of_thread())
    assert names.lookups == 1


# --- Forks -----------------------------------------------------------------------


def test_child_that_returns_from_a_function_of_its_sync_caller_is_told_at_once() -> None:
    child = run_child(
        """
        import os, sys, warnings
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        warnings.simplefilter("ignore", DeprecationWarning)

        def fork():
            child = os.fork()
            return not child or os.waitpid(child, 0)[1] == 0

        async def main():
            return await sync_to_async(fork)()

        try:
            assert async_to_sync(main)()
            print("parent went on")
        except RuntimeError as error:
            print(error)
            sys.stdout.flush()
            os._exit(0)
        """,
        timeout_seconds=5,
    )
    assert "leave the child with os._exit()" in child.stdout
    assert "parent went on" in child.stdout
