"""`cancelled` and `check_cancelled`: what sync code hears of its caller, wherever the two of them are."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    WorkerPool,
    async_to_sync,
    cancelled,
    check_cancelled,
    sync_to_async,
)
from tests.bridge import LIMIT_SECONDS, wait
from tests.support import run_child, run_in_thread

Main = Callable[[], Coroutine[Any, Any, Any]]


def on_plain_loop(main: Main) -> Any:
    return run_in_thread(lambda: asyncio.run(main()))


def in_context(main: Main) -> Any:
    async def request() -> Any:
        async with ThreadSensitiveContext():
            return await main()

    return on_plain_loop(request)


def below_async_to_sync(main: Main) -> Any:
    return run_in_thread(async_to_sync(main))


each_home = pytest.mark.parametrize("home", [on_plain_loop, in_context, below_async_to_sync])
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])


class Asking:
    """A sync function that asks when it begins, and again when the test says so."""

    def __init__(self) -> None:
        self.started, self.ask = threading.Event(), threading.Event()
        self.answers: list[bool] = []

    def __call__(self) -> None:
        self.answers.append(cancelled())
        self.started.set()
        wait(self.ask)
        self.answers.append(cancelled())

    async def begun(self) -> None:
        """Wait until it has asked for the first time."""
        assert await asyncio.to_thread(self.started.wait, LIMIT_SECONDS)

    async def asked_again(self) -> None:
        """Have it ask again, after all that the loop has to do before."""
        await turns()
        self.ask.set()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ends_cancelled(task: "asyncio.Task[Any]") -> None:
    await asyncio.wait([task], timeout=LIMIT_SECONDS)
    assert task.cancelled()


def until_cancelled() -> None:
    """Work in small pieces until the call is not wanted any more."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        check_cancelled()
        time.sleep(0.001)
    raise AssertionError("never cancelled")


async def answer() -> str:
    await asyncio.sleep(0)
    return "answer"


# --- True as soon as the task was cancelled ----------------------------------------------


@each_home
@each_sensitivity
def test_cancelled_while_the_function_runs_is_true_from_the_cancellation_on(
    home: Callable[[Main], Any], thread_sensitive: bool
) -> None:
    asking = Asking()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(asking, thread_sensitive=thread_sensitive)())
        await asking.begun()
        task.cancel()
        # Without a turn of the loop in between.
        asking.ask.set()
        await ends_cancelled(task)

    home(main)
    assert asking.answers == [False, True]


def test_cancelled_in_an_executor_of_the_callers_own_is_true_too() -> None:
    async def main(executor: Any) -> list[bool]:
        asking = Asking()
        call = sync_to_async(asking, thread_sensitive=False, executor=executor)
        task = asyncio.create_task(call())
        await asking.begun()
        task.cancel()
        asking.ask.set()
        await ends_cancelled(task)
        return asking.answers

    pool = WorkerPool("asked")
    with ThreadPoolExecutor(1) as executor:
        assert on_plain_loop(lambda: main(executor)) == [False, True]
    assert on_plain_loop(lambda: main(pool)) == [False, True]
    pool.shutdown()


@each_home
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cancelled_below_async_code_below_sync_code_is_seen_by_the_innermost(
    home: Callable[[Main], Any], depth: int
) -> None:
    asking = Asking()
    outer: list[bool] = []

    async def through(levels: int) -> None:
        call = (
            sync_to_async(layer)
            if levels % 2 == 0
            else sync_to_async(layer, thread_sensitive=False)
        )
        await call(levels)

    def layer(levels: int) -> None:
        try:
            if levels == 0:
                asking()
            else:
                async_to_sync(through)(levels - 1)
        finally:
            outer.append(cancelled())

    async def main() -> None:
        task = asyncio.create_task(through(depth))
        await asking.begun()
        task.cancel()
        await asking.asked_again()
        await ends_cancelled(task)

    home(main)
    assert asking.answers == [False, True]
    assert outer == [True] * (depth + 1)


@each_home
def test_cancelled_below_a_loop_of_its_own_is_seen_by_the_innermost(
    home: Callable[[Main], Any],
) -> None:
    started = threading.Event()
    log: list[str] = []

    def innermost() -> None:
        started.set()
        try:
            until_cancelled()
        except asyncio.CancelledError:
            log.append("innermost")
            raise

    async def middle() -> None:
        await sync_to_async(innermost)()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(async_to_sync(middle, force_new_loop=True))())
        assert await asyncio.to_thread(started.wait, LIMIT_SECONDS)
        task.cancel()
        await ends_cancelled(task)

    home(main)
    assert log == ["innermost"]


def test_cancelled_by_a_timeout_is_true_and_the_next_call_of_the_task_starts_anew() -> None:
    asking = Asking()

    async def main() -> bool:
        async def expire() -> None:
            await asking.begun()
            limit.reschedule(asyncio.get_running_loop().time())
            await asking.asked_again()

        expired = False
        try:
            async with asyncio.timeout(None) as limit:
                expiring = asyncio.create_task(expire())
                await sync_to_async(asking)()
        except TimeoutError:
            expired = True
        await expiring
        return expired and not await sync_to_async(cancelled)()

    assert on_plain_loop(main)
    assert asking.answers == [False, True]


def test_cancelled_by_the_failure_of_a_sibling_in_a_task_group_is_true() -> None:
    asking = Asking()

    async def fail() -> None:
        await asking.begun()
        # After the group has cancelled its other task.
        asyncio.get_running_loop().call_later(0.01, asking.ask.set)
        raise ValueError("expected")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sync_to_async(asking)())
            group.create_task(fail())

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert [str(error) for error in caught.value.exceptions] == ["expected"]

    on_plain_loop(main)
    assert asking.answers == [False, True]


# --- False for everybody else ------------------------------------------------------------


@each_home
def test_cancelled_behind_a_shield_is_false_although_the_outer_task_has_ended(
    home: Callable[[Main], Any],
) -> None:
    asking = Asking()

    async def main() -> None:
        inner = asyncio.create_task(sync_to_async(asking)())
        outer = asyncio.ensure_future(asyncio.shield(inner))
        await asking.begun()
        outer.cancel()
        await turns()
        assert outer.cancelled()
        asking.ask.set()
        await inner

    home(main)
    assert asking.answers == [False, False]


def test_cancelled_behind_a_shield_below_sync_code_is_true_for_the_outer_function_only() -> None:
    asking = Asking()
    outer: list[bool] = []
    shielded: list[asyncio.Task[None]] = []

    async def middle() -> None:
        shielded.append(asyncio.create_task(sync_to_async(asking, thread_sensitive=False)()))
        await asyncio.shield(shielded[0])

    def function() -> None:
        try:
            async_to_sync(middle)()
        finally:
            outer.append(cancelled())

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await asking.begun()
        task.cancel()
        await ends_cancelled(task)
        asking.ask.set()
        await shielded.pop()

    on_plain_loop(main)
    assert outer == [True]
    assert asking.answers == [False, False]


@each_home
def test_cancelled_call_leaves_the_next_call_in_its_thread_untouched(
    home: Callable[[Main], Any],
) -> None:
    def ask() -> tuple[bool, int]:
        return cancelled(), threading.get_ident()

    def note_and_wait() -> None:
        idents.append(threading.get_ident())
        started.set()
        until_cancelled()

    idents: list[int] = []
    started = threading.Event()

    async def main() -> tuple[bool, int]:
        task = asyncio.create_task(sync_to_async(note_and_wait)())
        assert await asyncio.to_thread(started.wait, LIMIT_SECONDS)
        task.cancel()
        await ends_cancelled(task)
        return await sync_to_async(ask)()

    assert home(main) == (False, idents[0])


def test_cancelled_in_a_thread_that_nobody_waits_for_is_false() -> None:
    def ask() -> bool:
        check_cancelled()
        return cancelled()

    async def fail() -> None:
        raise asyncio.CancelledError

    def after_a_cancelled_coroutine() -> bool:
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(fail)()
        return ask()

    assert run_in_thread(ask) is False
    assert run_in_thread(after_a_cancelled_coroutine) is False


def test_cancelled_in_a_thread_that_the_function_started_is_false() -> None:
    started, release = threading.Event(), threading.Event()

    def function() -> tuple[bool, bool]:
        started.set()
        wait(release)
        results.append((cancelled(), run_in_thread(cancelled)))
        return results[0]

    results: list[tuple[bool, bool]] = []

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        assert await asyncio.to_thread(started.wait, LIMIT_SECONDS)
        task.cancel()
        release.set()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert results == [(True, False)]


def test_cancelled_with_a_plain_list_of_tasks_is_false() -> None:
    """asgiref's class calls `thread_handler` with a list of its own, which knows of no cancellation."""

    def ask() -> bool:
        check_cancelled()
        return cancelled()

    async def main() -> bool:
        wrapper: Any = sync_to_async(ask)
        loop = asyncio.get_running_loop()
        no_exception = (None, None, None)

        def handle() -> bool:
            result: bool = wrapper.thread_handler(loop, no_exception, [], lambda f: f(), ask)
            return result

        return await asyncio.to_thread(handle)

    assert on_plain_loop(main) is False


# --- In async code -----------------------------------------------------------------------


def test_cancelled_in_async_code_tells_of_the_current_task() -> None:
    async def main() -> list[bool]:
        task = asyncio.current_task()
        assert task is not None
        check_cancelled()
        answers = [cancelled()]
        task.cancel()
        answers.append(cancelled())
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        answers.append(cancelled())
        task.uncancel()
        return [*answers, cancelled()]

    assert on_plain_loop(main) == [False, True, True, False]


def test_cancelled_in_a_callback_of_the_loop_is_false() -> None:
    async def main() -> bool:
        answers: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: answers.set_result(cancelled()))
        return await answers

    assert on_plain_loop(main) is False


def test_cancelled_in_async_code_inside_a_cancelled_function_tells_of_its_own_task() -> None:
    asking = Asking()
    answers: list[bool] = []

    async def other() -> None:
        check_cancelled()
        answers.append(cancelled())

    def function() -> None:
        asking()
        asyncio.run(other())

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await asking.begun()
        task.cancel()
        asking.ask.set()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert asking.answers == [False, True]
    assert answers == [False]


def test_check_cancelled_in_async_code_leaves_the_cancellation_of_the_function_around_it() -> None:
    """Another loop in the function's thread: its tasks' cancellations are not the function's."""
    asking = Asking()
    log: list[str] = []

    async def victim() -> None:
        try:
            await asyncio.sleep(LIMIT_SECONDS)
        finally:
            check_cancelled()

    async def other() -> None:
        task = asyncio.create_task(victim())
        await asyncio.sleep(0)
        task.cancel()
        await ends_cancelled(task)

    async def following() -> NoReturn:
        raise AssertionError("it ran")

    def function() -> None:
        asking()
        asyncio.run(other())
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(following)()
        log.append("cancelled")

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await asking.begun()
        task.cancel()
        asking.ask.set()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert log == ["cancelled"]


# --- After a fork ------------------------------------------------------------------------


def test_cancelled_in_a_forked_child_is_false() -> None:
    run_child(
        """
        import asyncio, os, threading, traceback, warnings
        from django_asyncbridge.bridge.sync import cancelled, check_cancelled, sync_to_async

        warnings.simplefilter("ignore", DeprecationWarning)
        started, release = threading.Event(), threading.Event()
        codes = []

        def function():
            started.set()
            assert release.wait(10)
            assert cancelled()
            child = os.fork()
            if not child:
                code = 1
                try:
                    assert cancelled() is False
                    check_cancelled()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            codes.append(os.waitpid(child, 0)[1])
            check_cancelled()

        async def main():
            task = asyncio.create_task(sync_to_async(function)())
            await asyncio.to_thread(started.wait, 10)
            task.cancel()
            release.set()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(main())
        assert codes == [0], codes
        """
    )


# --- What becomes of the cancellation ----------------------------------------------------


class CleaningUp(Asking):
    """Asks twice; then does what the test hands it."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self.then = then
        self.log: list[object] = []

    def __call__(self) -> None:
        super().__call__()
        try:
            self.log.append(self.then())
        except BaseException as error:
            self.log.append(type(error))
            raise

    async def run(self) -> None:
        """Call it from a task, which is cancelled in the middle and has to end so."""
        task = asyncio.create_task(sync_to_async(self)())
        await self.begun()
        task.cancel()
        self.ask.set()
        await ends_cancelled(task)


@each_home
def test_check_cancelled_raises_in_a_cancelled_function(home: Callable[[Main], Any]) -> None:
    function = CleaningUp(check_cancelled)
    home(function.run)
    assert function.log == [asyncio.CancelledError]


def test_check_cancelled_says_what_has_been_cancelled() -> None:
    def then() -> str:
        with pytest.raises(asyncio.CancelledError) as caught:
            check_cancelled()
        return str(caught.value)

    function = CleaningUp(then)
    on_plain_loop(function.run)
    assert function.log == ["the task that waits for this function has been cancelled"]


@each_home
def test_async_to_sync_after_check_cancelled_raised_works(home: Callable[[Main], Any]) -> None:
    def clean_up() -> list[object]:
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()
        return [async_to_sync(answer)(), async_to_sync(answer)(), cancelled()]

    function = CleaningUp(clean_up)
    home(function.run)
    assert function.log == [["answer", "answer", True]]


@each_home
def test_async_to_sync_after_check_cancelled_raised_may_cross_back(
    home: Callable[[Main], Any],
) -> None:
    def clean_up() -> bool:
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()
        here = async_to_sync(sync_to_async(threading.get_ident))()
        return here == threading.get_ident()

    function = CleaningUp(clean_up)
    home(function.run)
    assert function.log == [True]


@each_home
def test_async_to_sync_before_anybody_checked_is_cancelled_and_starts_nothing(
    home: Callable[[Main], Any],
) -> None:
    async def must_not_start() -> NoReturn:
        raise AssertionError("it started")

    def then() -> list[object]:
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(must_not_start)()
        # Once is enough.
        return [async_to_sync(answer)()]

    function = CleaningUp(then)
    home(function.run)
    assert function.log == [["answer"]]


def test_cancelled_alone_does_not_take_the_cancellation_from_the_next_async_to_sync() -> None:
    def then() -> None:
        assert cancelled()
        async_to_sync(answer)()

    function = CleaningUp(then)
    on_plain_loop(function.run)
    assert function.log == [asyncio.CancelledError]


def test_check_cancelled_before_the_cancellation_changes_nothing() -> None:
    log: list[object] = []

    def function() -> None:
        check_cancelled()
        log.append(async_to_sync(answer)())
        asking()
        async_to_sync(answer)()

    asking = Asking()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await asking.begun()
        task.cancel()
        asking.ask.set()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert log == ["answer"]
    assert asking.answers == [False, True]


@each_home
def test_function_that_swallows_the_cancellation_does_not_undo_it(
    home: Callable[[Main], Any],
) -> None:
    def swallow() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            check_cancelled()
        return "result"

    function = CleaningUp(swallow)
    # `run` sees to it that the task ends cancelled.
    home(function.run)
    assert function.log == ["result"]


def test_cancellation_that_finds_its_coroutine_ended_leaves_the_clean_up_alone() -> None:
    """The coroutine ends in the turn of the loop in which it was to be cancelled; by then the function knows."""
    checked, late = threading.Event(), threading.Event()
    log: list[str] = []

    def function(first: "asyncio.Future[None]", began: asyncio.Event) -> None:
        async def wait_for_it() -> None:
            began.set()
            await first

        async_to_sync(wait_for_it)()
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()
        checked.set()
        wait(late)
        log.append(async_to_sync(answer)())

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def in_between() -> None:
            wait(checked)
            loop.call_soon(late.set)

        first, began = loop.create_future(), asyncio.Event()
        task = asyncio.create_task(sync_to_async(function)(first, began))
        await began.wait()
        await turns()
        first.set_result(None)
        loop.call_soon(in_between)
        task.cancel()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert log == ["answer"]


def test_second_cancellation_reaches_the_clean_up_of_the_first() -> None:
    log: list[str] = []

    async def main() -> None:
        started, cleaning = threading.Event(), asyncio.Event()

        async def clean_up() -> None:
            cleaning.set()
            await asyncio.sleep(LIMIT_SECONDS)

        def function() -> None:
            started.set()
            with pytest.raises(asyncio.CancelledError):
                until_cancelled()
            try:
                async_to_sync(clean_up)()
            except asyncio.CancelledError:
                log.append("clean-up cancelled")
                raise

        task = asyncio.create_task(sync_to_async(function)())
        assert await asyncio.to_thread(started.wait, LIMIT_SECONDS)
        task.cancel()
        await asyncio.wait_for(cleaning.wait(), LIMIT_SECONDS)
        task.cancel()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert log == ["clean-up cancelled"]


def test_check_cancelled_leaves_the_innermost_function_of_a_chain_and_every_layer_cleans_up() -> (
    None
):
    log: list[str] = []
    started = threading.Event()

    def lower() -> None:
        started.set()
        try:
            until_cancelled()
        finally:
            log.append(async_to_sync(clean_up)("lower"))

    def upper() -> None:
        try:
            async_to_sync(sync_to_async(lower))()
        finally:
            log.append(async_to_sync(clean_up)("upper"))

    async def clean_up(layer: str) -> str:
        await asyncio.sleep(0)
        return layer

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(upper)())
        assert await asyncio.to_thread(started.wait, LIMIT_SECONDS)
        task.cancel()
        await ends_cancelled(task)

    on_plain_loop(main)
    assert log == ["lower", "upper"]
