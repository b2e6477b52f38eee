"""`Departure`: what a server's `receive` does, and what becomes of the task of the request."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from django_asyncbridge.handlers import departure
from django_asyncbridge.handlers.departure import Departure
from tests.bridge import LIMIT_SECONDS

Receive = Callable[[], Awaitable[Any]]


@pytest.fixture(autouse=True)
def watch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "_PATIENCE_SECONDS", 0.0)


async def forever() -> Any:
    await asyncio.Event().wait()


def leaving(turns: int = 0) -> Receive:
    async def receive() -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    return receive


async def stay() -> None:
    await asyncio.wait_for(forever(), LIMIT_SECONDS)


@pytest.mark.parametrize("turns", range(5))
def test_departure_cancels_what_waits_and_takes_the_cancellation_back(turns: int) -> None:
    events: list[str] = []

    async def main() -> None:
        async with Departure(leaving(turns), "GET /") as departing:
            try:
                await stay()
            except asyncio.CancelledError as error:
                events.append(str(error))
                raise
        assert departing.happened
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        # Clean-up can wait, for as long as it takes.
        await asyncio.sleep(0)

    asyncio.run(main())
    assert events == ["the client has left"]


def test_departure_of_a_client_that_stays_does_nothing() -> None:
    async def main() -> None:
        async with Departure(forever, "GET /") as departing:
            await asyncio.sleep(0.001)
            assert departing._listener is not None
        assert not departing.happened
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_departure_is_not_looked_for_while_a_request_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departure, "_PATIENCE_SECONDS", LIMIT_SECONDS)

    async def main() -> None:
        async with Departure(leaving(), "GET /") as departing:
            await asyncio.sleep(0.001)
        assert departing._listener is None

    asyncio.run(main())


def test_departure_lets_a_cancellation_by_somebody_else_through() -> None:
    async def main() -> None:
        async def block() -> None:
            async with Departure(forever, "GET /"):
                await stay()

        task = asyncio.create_task(block())
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


def test_departure_and_a_cancellation_by_somebody_else_at_once_end_cancelled() -> None:
    async def main() -> None:
        departing: list[Departure] = []

        async def block() -> None:
            async with Departure(leaving(), "GET /") as one:
                departing.append(one)
                try:
                    await stay()
                finally:
                    task.cancel()
                    await asyncio.sleep(0)

        task = asyncio.create_task(block())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert departing[0].happened

    asyncio.run(main())


def test_departure_keeps_what_the_block_raises_instead() -> None:
    async def main() -> None:
        async def block() -> None:
            async with Departure(leaving(), "GET /"):
                try:
                    await stay()
                except asyncio.CancelledError:
                    raise KeyError("clean-up failed") from None

        with pytest.raises(KeyError):
            await block()

    asyncio.run(main())


def test_departure_that_the_block_does_not_heed_is_taken_back() -> None:
    async def main() -> None:
        async with Departure(leaving(), "GET /"):
            with pytest.raises(asyncio.CancelledError):
                await stay()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


# --- What servers do -----------------------------------------------------------------


def test_departure_told_by_a_receive_that_was_cancelled_is_too_late() -> None:
    """C79: a server's `receive` that answers its cancellation with a disconnect."""

    async def receive() -> Any:
        try:
            await stay()
        except asyncio.CancelledError:
            return {"type": "http.disconnect"}

    async def main() -> None:
        async with Departure(receive, "GET /") as departing:
            await asyncio.sleep(0.001)
        assert not departing.happened
        await asyncio.sleep(0)

    asyncio.run(main())


def test_departure_from_a_server_whose_receive_cannot_be_cancelled_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(departure, "_LISTENER_SECONDS", 0.001)

    async def main() -> None:
        ends = asyncio.Event()

        async def receive() -> Any:
            while not ends.is_set():
                try:
                    await ends.wait()
                except asyncio.CancelledError:
                    continue
            return {"type": "http.disconnect"}

        async with Departure(receive, "GET /stubborn/") as departing:
            await asyncio.sleep(0.001)
        ends.set()
        assert departing._listener is not None
        await departing._listener

    asyncio.run(main())
    (record,) = caplog.records
    assert "goes on although it was cancelled, after GET /stubborn/" in record.getMessage()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "http.request", "body": b""}, "sent the message 'http.request' after the body"),
        (ValueError("broken"), "receive() of the server failed"),
    ],
)
def test_departure_with_a_server_that_breaks_the_rules_tells_and_goes_on(
    message: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def receive() -> Any:
        if isinstance(message, Exception):
            raise message
        return message

    async def main() -> None:
        async with Departure(receive, "GET /") as departing:
            while departing._listener is None or not departing._listener.done():
                await asyncio.sleep(0)
        assert not departing.happened

    asyncio.run(main())
    gc.collect()
    (record,) = caplog.records
    assert text in record.getMessage()
