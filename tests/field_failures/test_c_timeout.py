"""Section C, C37: a caller of `async_to_sync` that does not wait for ever."""

import asyncio
import threading
import time
from typing import Any

import pytest
import uvloop

from django_asyncbridge.bridge.sync import AsyncToSync, async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Work
from tests.support import run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
SECONDS = 0.05


class StuckPeer:
    """A peer that never answers, and who asked it."""

    def __init__(self) -> None:
        self.log: list[object] = []

    async def ask(self) -> None:
        """Ask, and clean up with the help of the home thread."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            self.log.append(await sync_to_async(threading.get_ident)())


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
@pytest.mark.parametrize("force_new_loop", [False, True])
def test_c37_stuck_call_raises_in_time_when_its_coroutine_has_cleaned_up(
    loop_factory: Any, force_new_loop: bool
) -> None:
    """C37, P6: what the call started has ended when the error comes."""
    peer = StuckPeer()
    ask = AsyncToSync(peer.ask, force_new_loop, loop_factory=loop_factory, timeout=SECONDS)

    def call() -> int:
        since = time.monotonic()
        with pytest.raises(TimeoutError, match=r"ask did not end within 0\.05 s"):
            ask()
        assert SECONDS / 2 < time.monotonic() - since < 5
        return threading.get_ident()

    ident = run_in_thread(call)
    assert peer.log == ["cancelled", ident]


@each_home
def test_c37_stuck_call_below_a_loop_raises_and_its_caller_goes_on(home: Any) -> None:
    """C37: the same where the coroutine runs on the loop that waits for the sync function."""
    peer = StuckPeer()

    def view() -> str:
        with pytest.raises(TimeoutError):
            AsyncToSync(peer.ask, timeout=SECONDS)()
        return async_to_sync(go_on)()

    async def go_on() -> str:
        return "goes on"

    async def main() -> str:
        return await sync_to_async(view)()

    assert home(main) == "goes on"
    assert peer.log[0] == "cancelled"


def test_c37_call_that_waits_for_a_function_raises_when_that_has_ended(work: Work) -> None:
    """C37, P6: a running function cannot be stopped, and is waited for."""

    async def main() -> None:
        asyncio.get_running_loop().call_later(2 * SECONDS, work.release.set)
        await asyncio.to_thread(work)

    with pytest.raises(TimeoutError):
        run_in_thread(AsyncToSync(main, timeout=SECONDS))
    assert work.effects == ["function ended"]


def test_c37_time_limit_of_an_inner_call_is_not_taken_for_the_outer_one_s() -> None:
    """C37: the error says whose limit it was."""
    peer = StuckPeer()

    def view() -> None:
        AsyncToSync(peer.ask, timeout=SECONDS)()

    async def outer() -> None:
        await sync_to_async(view)()

    with pytest.raises(TimeoutError, match=r"ask did not end within 0\.05 s"):
        run_in_thread(AsyncToSync(outer, timeout=30))


def test_c37_cancelled_call_with_a_time_limit_ends_cancelled() -> None:
    """C37, P5: that it had a limit is no reason to raise anything else."""
    began = threading.Event()

    async def ask() -> None:
        began.set()
        await asyncio.Event().wait()

    async def main() -> bool:
        task = asyncio.create_task(sync_to_async(AsyncToSync(ask, timeout=30))())
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run_in_thread(lambda: asyncio.run(main()))
