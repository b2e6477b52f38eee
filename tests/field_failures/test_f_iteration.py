"""Section F: generators across the bridge (C60, C61, C62), and the first item of a stream (C71)."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from django_asyncbridge.bridge.iteration import iterate_in_thread
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, on_plain_loop, until
from tests.support import run_child, run_in_thread

current = sync_to_async(threading.current_thread)
Main = Callable[[], Coroutine[Any, Any, Any]]
in_every_home = pytest.mark.parametrize("run", HOMES.values(), ids=HOMES.keys())


def threads(count: int) -> Iterator[threading.Thread]:
    """Yield the thread that each step runs in."""
    for _ in range(count):
        yield threading.current_thread()


# --- C60: the body of a generator function runs in its thread ------------------


@in_every_home
def test_c60_generator_function_runs_in_the_home_thread(run: Callable[[Main], Any]) -> None:
    """C60: no step of the body runs on the event loop's thread."""

    async def main() -> None:
        home = await current()
        assert home is not threading.current_thread()
        assert [thread async for thread in sync_to_async(threads)(40)] == [home] * 40

    run(main)


def test_c60_call_of_a_wrapped_generator_function_runs_nothing_and_binds_arguments() -> None:
    """C60: as of any generator function."""

    async def main() -> None:
        with pytest.raises(TypeError, match="count"):
            sync_to_async(threads)()  # type: ignore[call-arg]  # what is tested
        sync_to_async(threads)(1)

    on_plain_loop(main)


# --- C61: bounded, back-pressure, closed ---------------------------------------


@in_every_home
@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_c61_generator_is_never_more_than_that_many_items_ahead(
    run: Callable[[Main], Any], ahead: int
) -> None:
    """C61: back-pressure; the consumer's own calls in the same thread run between the items."""
    made = 0

    def numbers() -> Iterator[int]:
        nonlocal made
        for number in range(60):
            made += 1
            yield number

    async def main() -> None:
        got = 0
        async for number in iterate_in_thread(numbers(), ahead=ahead):
            assert number == got
            got += 1
            # This call waits until the thread has stopped running ahead.
            await current()
            assert got <= made <= got + ahead
        assert got == 60

    run(main)


@in_every_home
def test_c61_generator_is_closed_in_its_thread_when_the_consumer_stops(
    run: Callable[[Main], Any],
) -> None:
    """C61: ``break``, and what a ``with`` block in the generator holds is given back."""
    closed: list[threading.Thread] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread())

    async def main() -> None:
        home = await current()
        async with iterate_in_thread(endless()) as items:
            assert await anext(items) == 1
        assert closed == [home]

    run(main)


def test_c71_item_is_there_as_soon_as_it_is_made() -> None:
    """C71: a slow generator's first item does not wait for its second, nor that for its third."""
    seen = [threading.Event() for _ in range(8)]

    def slow() -> Iterator[int]:
        for number, event in enumerate(seen):
            yield number
            # Comes only if the item was delivered while this runs.
            assert event.wait(10)

    async def main() -> None:
        async for number in iterate_in_thread(slow(), thread_sensitive=False, ahead=100):
            seen[number].set()

    on_plain_loop(main)


# --- C62: async generators in sync code ----------------------------------------


def test_c62_list_of_an_async_generator_function() -> None:
    """C62: ``list(async_to_sync(agen)())``, and its thread-sensitive work runs in the thread that waits."""

    @async_to_sync
    async def numbers(count: int) -> AsyncIterator[tuple[int, threading.Thread]]:
        for number in range(count):
            await asyncio.sleep(0)
            yield number, await current()

    def main() -> None:
        here = threading.current_thread()
        assert list(numbers(3)) == [(0, here), (1, here), (2, here)]

    main()
    run_in_thread(main)
    on_plain_loop(sync_to_async(main))


def test_c62_async_generator_is_advanced_on_the_loop_that_waits() -> None:
    """C62: connections of that loop can be used."""

    async def loops() -> AsyncIterator[asyncio.AbstractEventLoop]:
        for _ in range(3):
            yield asyncio.get_running_loop()

    async def main() -> None:
        seen = await sync_to_async(lambda: list(async_to_sync(loops)()))()
        assert seen == [asyncio.get_running_loop()] * 3

    on_plain_loop(main)


def test_c62_there_and_back_ends_in_the_thread_that_waits() -> None:
    """C61, C62: a generator function, made async, made sync again."""
    there_and_back = async_to_sync(sync_to_async(threads))

    def main() -> None:
        assert list(there_and_back(40)) == [threading.current_thread()] * 40

    run_in_thread(main)
    on_plain_loop(sync_to_async(main))


def test_c61_c62_program_that_drops_both_kinds_in_the_middle_ends() -> None:
    """C61, C62: nothing keeps the interpreter from ending."""
    child = run_child(
        """
        import asyncio
        from django_asyncbridge import async_to_sync, sync_to_async

        def numbers():
            try:
                while True:
                    yield 1
            finally:
                print("closed", flush=True)

        async def anumbers():
            try:
                while True:
                    yield 1
            finally:
                print("aclosed", flush=True)

        async def main():
            async for number in sync_to_async(numbers)():
                break

        asyncio.run(main())
        kept = async_to_sync(anumbers)()
        print(next(kept))
        """
    )
    assert child.stdout.split() == ["closed", "1", "aclosed"]
    assert child.stderr == ""


def test_c61_waiting_for_a_slow_item_leaves_the_loop_free() -> None:
    """C61: other tasks run while the thread makes an item."""
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> Generator[int, None, None]:
        asked.set()
        assert go_on.wait(10)
        yield 1

    async def main() -> None:
        async def release() -> None:
            await until(asked)
            go_on.set()

        releasing = asyncio.create_task(release())
        assert [number async for number in sync_to_async(slow)()] == [1]
        await releasing

    on_plain_loop(main)
