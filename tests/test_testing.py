"""The communicator: what a test sees of an application that talks, waits, fails, ends or does not end."""

import asyncio
import contextvars
import functools
import gc
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from django_asyncbridge.bridge.testing import ApplicationCommunicator

SHORT = 0.01
# No test that passes waits so long; one that finds it waited for has failed.
LONG = 60.0

Message = dict[str, Any]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LONG / 2):
                await test(*arguments, **options)

        asyncio.run(limited())

    return run


def message(number: int) -> Message:
    return {"type": "test.message", "number": number}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while (event := await receive())["type"] != "test.end":
        await send(event)


async def silent(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def ends_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


class Sends:
    """An application that sends so many messages and then ends, or fails."""

    def __init__(self, count: int, failure: BaseException | None = None) -> None:
        self.count = count
        self.failure = failure

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for number in range(self.count):
            await send(message(number))
        if self.failure is not None:
            raise self.failure


async def ended(communicator: ApplicationCommunicator) -> ApplicationCommunicator:
    """Let the application run to its end without looking at how it ends."""
    await asyncio.wait([communicator.future])
    return communicator


# --- Start -------------------------------------------------------------------


def test_communicator_made_without_a_loop_starts_the_application_with_the_first_need() -> None:
    started = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope)

    communicator = ApplicationCommunicator(application, {"type": "test"})
    assert communicator.scope == {"type": "test"}
    assert communicator.input_queue.empty()
    assert communicator.output_queue.empty()

    async def test() -> None:
        await asyncio.sleep(0)
        assert started == []
        await communicator.wait()
        assert started == [{"type": "test"}]

    asyncio.run(test())


@in_loop
async def test_communicator_runs_one_task_with_the_queues_it_shows() -> None:
    communicator = ApplicationCommunicator(echo, {})
    assert isinstance(communicator.future, asyncio.Task)
    assert communicator.future is communicator.future
    await communicator.input_queue.put(message(1))
    assert await communicator.output_queue.get() == message(1)
    communicator.stop()


@in_loop
async def test_communicator_takes_an_asgi_2_application() -> None:
    def application(scope: Any) -> Callable[[Any, Any], Awaitable[None]]:
        return functools.partial(echo, scope)

    communicator = ApplicationCommunicator(application, {})
    await communicator.send_input(message(1))
    assert await communicator.receive_output() == message(1)
    communicator.stop()


@in_loop
async def test_communicator_takes_an_application_that_is_no_coroutine() -> None:
    class Endpoint:
        def __init__(self, scope: Any, receive: Any, send: Any) -> None:
            self.run = echo(scope, receive, send)

        def __await__(self) -> Generator[Any, None, None]:
            return self.run.__await__()

    communicator = ApplicationCommunicator(Endpoint, {})
    await communicator.send_input(message(1))
    assert await communicator.receive_output() == message(1)
    communicator.stop()


VARIABLE = contextvars.ContextVar("VARIABLE", default="none")


@pytest.mark.parametrize("plain", [True, False])
@in_loop
async def test_application_starts_in_an_empty_context(plain: bool) -> None:
    seen = []

    async def coroutine_function(scope: Any, receive: Any, send: Any) -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("the application's")

    def plain_function(scope: Any, receive: Any, send: Any) -> Any:
        seen.append(VARIABLE.get())
        return coroutine_function(scope, receive, send)

    VARIABLE.set("the test's")
    await ApplicationCommunicator(plain_function if plain else coroutine_function, {}).wait()
    assert set(seen) == {"none"}
    assert VARIABLE.get() == "the test's"


# --- send_input ----------------------------------------------------------------


@in_loop
async def test_send_input_before_any_output_is_read_in_order() -> None:
    communicator = ApplicationCommunicator(echo, {})
    for number in range(3):
        await communicator.send_input(message(number))
    assert [await communicator.receive_output() for _ in range(3)] == [*map(message, range(3))]
    await communicator.send_input({"type": "test.end"})
    await communicator.wait()


@in_loop
async def test_send_input_to_a_failed_application_raises_its_failure() -> None:
    communicator = await ended(ApplicationCommunicator(Sends(1, LookupError("its own")), {}))
    with pytest.raises(LookupError, match="its own"):
        await communicator.send_input(message(0))
    assert await communicator.receive_output() == message(0)


@in_loop
async def test_send_input_to_an_ended_application_is_taken_and_of_no_effect() -> None:
    communicator = await ended(ApplicationCommunicator(ends_at_once, {}))
    await communicator.send_input(message(0))
    assert communicator.input_queue.qsize() == 1


# --- receive_output ------------------------------------------------------------


@in_loop
async def test_receive_output_that_times_out_leaves_the_application_usable() -> None:
    communicator = ApplicationCommunicator(echo, {})
    with pytest.raises(TimeoutError, match=r"no message within 0\.01 s"):
        await communicator.receive_output(timeout=SHORT)
    await communicator.send_input(message(1))
    assert await communicator.receive_output() == message(1)
    communicator.stop()


@in_loop
async def test_receive_output_that_times_out_takes_back_its_cancellation() -> None:
    communicator = ApplicationCommunicator(silent, {})
    with pytest.raises(TimeoutError):
        await communicator.receive_output(timeout=SHORT)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    communicator.stop()


@in_loop
async def test_receive_output_of_a_failed_application_gives_its_messages_first() -> None:
    communicator = await ended(ApplicationCommunicator(Sends(2, LookupError("its own")), {}))
    assert await communicator.receive_output() == message(0)
    assert await communicator.receive_output() == message(1)
    for _ in range(2):
        with pytest.raises(LookupError, match="its own"):
            await communicator.receive_output()


@pytest.mark.parametrize("count", [0, 1])
@in_loop
async def test_receive_output_when_the_application_fails_meanwhile_raises_at_once(
    count: int,
) -> None:
    communicator = ApplicationCommunicator(Sends(count, LookupError("its own")), {})
    for number in range(count):
        assert await communicator.receive_output(LONG) == message(number)
    with pytest.raises(LookupError, match="its own"):
        await communicator.receive_output(LONG)


@pytest.mark.parametrize("count", [0, 1])
@in_loop
async def test_receive_output_when_the_application_ends_meanwhile_raises_at_once(
    count: int,
) -> None:
    communicator = ApplicationCommunicator(Sends(count), {})
    for number in range(count):
        assert await communicator.receive_output(LONG) == message(number)
    with pytest.raises(TimeoutError, match="has ended"):
        await communicator.receive_output(LONG)


@in_loop
async def test_receive_output_when_the_application_is_cancelled_raises_that() -> None:
    communicator = ApplicationCommunicator(silent, {})
    asyncio.get_running_loop().call_soon(communicator.stop)
    with pytest.raises(asyncio.CancelledError):
        await communicator.receive_output(LONG)


@in_loop
async def test_receive_output_without_limit_waits_for_the_message() -> None:
    communicator = ApplicationCommunicator(echo, {})
    asyncio.get_running_loop().call_later(SHORT, communicator.input_queue.put_nowait, message(1))
    assert await communicator.receive_output(timeout=None) == message(1)
    communicator.stop()


@in_loop
async def test_receive_output_with_no_time_left_takes_a_message_that_is_there() -> None:
    communicator = await ended(ApplicationCommunicator(Sends(1), {}))
    assert await communicator.receive_output(timeout=0) == message(0)


@in_loop
async def test_receive_output_when_a_message_comes_as_time_runs_out_returns_it() -> None:
    communicator = ApplicationCommunicator(silent, {})
    communicator.future  # noqa: B018  (starts the application)
    receiving = asyncio.create_task(communicator.receive_output(timeout=0))
    await asyncio.sleep(0)  # it waits, and its time is up in the next turn of the loop
    asyncio.get_running_loop().call_later(0, communicator.output_queue.put_nowait, message(1))
    assert await receiving == message(1)
    communicator.stop()


@in_loop
async def test_receive_output_that_is_cancelled_loses_no_message() -> None:
    communicator = ApplicationCommunicator(echo, {})
    receiving = asyncio.create_task(communicator.receive_output(LONG))
    await communicator.send_input(message(1))
    while communicator.output_queue.empty():
        await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert await communicator.receive_output() == message(1)
    communicator.stop()


@in_loop
async def test_receive_output_by_two_tasks_gives_each_message_once() -> None:
    communicator = ApplicationCommunicator(echo, {})
    receiving = [asyncio.create_task(communicator.receive_output(LONG)) for _ in range(2)]
    for number in range(2):
        await asyncio.sleep(0)
        await communicator.send_input(message(number))
    received = await asyncio.gather(*receiving)
    assert sorted(event["number"] for event in received) == [0, 1]
    communicator.stop()


@in_loop
async def test_receive_output_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    communicator = ApplicationCommunicator(silent, {})
    with pytest.raises(TimeoutError):
        await communicator.receive_output(timeout=SHORT)
    assert asyncio.all_tasks() - before == {communicator.future}
    communicator.stop()


# --- receive_nothing -----------------------------------------------------------


@in_loop
async def test_receive_nothing_of_a_silent_application_says_so_after_the_time() -> None:
    communicator = ApplicationCommunicator(silent, {})
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert await communicator.receive_nothing(timeout=0.05) is True
    assert loop.time() - before >= 0.04  # a timer may be early by the clock's resolution
    communicator.stop()


@in_loop
async def test_receive_nothing_with_a_message_says_no_and_leaves_it() -> None:
    communicator = ApplicationCommunicator(Sends(1), {})
    assert await communicator.receive_nothing(LONG, interval=LONG) is False
    assert await communicator.receive_nothing() is False
    assert await communicator.receive_output() == message(0)
    assert await communicator.receive_nothing() is True


@in_loop
async def test_receive_nothing_of_an_application_that_ends_does_not_wait() -> None:
    communicator = ApplicationCommunicator(ends_at_once, {})
    assert await communicator.receive_nothing(LONG, interval=LONG) is True


@in_loop
async def test_receive_nothing_of_an_application_that_fails_raises_its_failure() -> None:
    communicator = ApplicationCommunicator(Sends(0, LookupError("its own")), {})
    for _ in range(2):
        with pytest.raises(LookupError, match="its own"):
            await communicator.receive_nothing(LONG, interval=LONG)


@in_loop
async def test_receive_nothing_after_a_failure_says_no_while_there_are_messages() -> None:
    communicator = await ended(ApplicationCommunicator(Sends(1, LookupError("its own")), {}))
    assert await communicator.receive_nothing() is False
    await communicator.receive_output()
    with pytest.raises(LookupError, match="its own"):
        await communicator.receive_nothing()


# --- wait ----------------------------------------------------------------------


@in_loop
async def test_wait_for_an_application_that_ends_returns_and_leaves_its_messages() -> None:
    communicator = ApplicationCommunicator(Sends(1), {})
    await communicator.wait()
    assert communicator.future.done()
    assert await communicator.receive_output() == message(0)


@in_loop
async def test_wait_for_an_application_that_fails_raises_its_failure() -> None:
    communicator = ApplicationCommunicator(Sends(0, LookupError("its own")), {})
    with pytest.raises(LookupError, match="its own"):
        await communicator.wait()


@pytest.mark.parametrize("timeout", [SHORT, 0])
@in_loop
async def test_wait_for_an_application_that_does_not_end_cancels_it_quietly(
    timeout: float,
) -> None:
    communicator = ApplicationCommunicator(silent, {})
    await communicator.wait(timeout)
    assert communicator.future.cancelled()
    await communicator.wait()


@in_loop
async def test_wait_for_an_application_that_takes_its_time_when_cancelled_waits_for_it() -> None:
    done = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await silent(scope, receive, send)
        finally:
            await clean_up()

    async def clean_up() -> None:
        await asyncio.sleep(SHORT)
        done.append("cleaned up")
        raise LookupError("its own")

    communicator = ApplicationCommunicator(application, {})
    with pytest.raises(LookupError, match="its own"):
        await communicator.wait(SHORT)
    assert done == ["cleaned up"]


@in_loop
async def test_wait_that_is_cancelled_ends_cancelled_and_so_does_the_application() -> None:
    communicator = ApplicationCommunicator(silent, {})
    waiting = asyncio.create_task(communicator.wait(LONG))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert communicator.future.cancelled()


@in_loop
async def test_wait_without_limit_waits_for_the_end() -> None:
    communicator = ApplicationCommunicator(echo, {})
    asyncio.get_running_loop().call_later(
        SHORT, communicator.input_queue.put_nowait, {"type": "test.end"}
    )
    await communicator.wait(timeout=None)
    assert communicator.future.result() is None


# --- stop and deletion -----------------------------------------------------------


@in_loop
async def test_stop_of_a_running_application_cancels_it() -> None:
    communicator = await started(ApplicationCommunicator(silent, {}))
    communicator.stop()
    await ended(communicator)
    assert communicator.future.cancelled()
    communicator.stop()


async def started(communicator: ApplicationCommunicator) -> ApplicationCommunicator:
    assert not communicator.future.done()
    await asyncio.sleep(0)
    return communicator


def test_stop_of_an_application_that_never_started_does_nothing() -> None:
    ApplicationCommunicator(silent, {}).stop()


@in_loop
async def test_stop_of_a_failed_application_raises_its_failure_if_asked() -> None:
    communicator = await ended(ApplicationCommunicator(Sends(0, LookupError("its own")), {}))
    communicator.stop(exceptions=False)
    with pytest.raises(LookupError, match="its own"):
        communicator.stop()


@in_loop
async def test_deletion_of_a_forgotten_communicator_cancels_its_application() -> None:
    communicator = await started(ApplicationCommunicator(silent, {}))
    future = communicator.future
    del communicator
    gc.collect()
    await asyncio.wait([future])
    assert future.cancelled()


def test_deletion_after_the_loop_is_closed_is_quiet() -> None:
    loop = asyncio.new_event_loop()
    communicator = ApplicationCommunicator(silent, {})
    loop.run_until_complete(started(communicator))
    future = communicator.future
    loop.close()
    del communicator  # pytest turns what __del__ raises into a failure
    gc.collect()
    future._log_destroy_pending = False  # type: ignore[attr-defined]  # closing it so was the point


def test_deletion_of_a_subclass_that_failed_before_its_base_was_made_is_quiet() -> None:
    class Picky(ApplicationCommunicator):
        def __init__(self, path: object) -> None:
            if not isinstance(path, str):
                raise TypeError("a path is a string")
            super().__init__(silent, {"path": path})

    with pytest.raises(TypeError):
        Picky(1)
    gc.collect()  # pytest turns what __del__ raises into a failure
    assert Picky("/").scope == {"path": "/"}
