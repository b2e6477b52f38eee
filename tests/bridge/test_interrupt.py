"""`DeferredInterrupt`: Ctrl-C while the main thread runs an event loop of the bridge's."""

import pytest

from tests.support import run_child

SIGNALS = """
    import asyncio, os, signal, sys, threading, time
    import uvloop
    from django_asyncbridge.bridge.sync import AsyncToSync, sync_to_async

    factory = {"asyncio": None, "uvloop": uvloop.new_event_loop}[sys.argv[1]]
    moves = sys.argv[2] == "in_worker"
    log = []
    handlers = set()

    async def send():
        # A signal that comes when the main thread is about to wait is only seen after the wait (CPython's locks).
        await asyncio.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    async def way():
        await asyncio.sleep(0)
        if moves:
            await sync_to_async(int)()

    def call(function, expected):
        try:
            AsyncToSync(function, loop_factory=factory)()
        except expected as error:
            assert type(error) is expected, repr(error)
        else:
            raise SystemExit("not interrupted")

    async def works():
        await way()
        return "works"

    def check():
        assert asyncio._get_running_loop() is None
        assert AsyncToSync(works, loop_factory=factory)() == "works"
"""
each_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
each_way = pytest.mark.parametrize("way", ["here", "in_worker"])


@each_loop
@each_way
def test_interrupt_cancels_the_coroutine_and_is_raised_when_that_has_ended(
    loop: str, way: str
) -> None:
    run_child(
        SIGNALS
        + """
    async def interrupted():
        await way()
        handlers.add(signal.getsignal(signal.SIGINT))
        await send()
        try:
            await asyncio.sleep(5)
        finally:
            await asyncio.sleep(0.01)
            log.append(await sync_to_async(threading.current_thread)() is threading.main_thread())

    call(interrupted, KeyboardInterrupt)
    assert log == [True], log
    # Python's own is in place again, and stays if the main thread does not run the loop.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (handlers == {signal.default_int_handler}) == moves
    check()
    """,
        *(loop, way),
        timeout_seconds=10,
    )


@each_loop
@each_way
def test_interrupt_that_comes_again_is_raised_at_once(loop: str, way: str) -> None:
    child = run_child(
        SIGNALS
        + """
    async def stubborn():
        await way()
        for _ in range(2):
            log.append("interrupted")
            await send()
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                pass
        while not ended.is_set():
            await asyncio.sleep(0.001)

    ended = threading.Event()
    since = time.monotonic()
    call(stubborn, KeyboardInterrupt)
    assert time.monotonic() - since < 3
    assert log == ["interrupted"] * 2
    ended.set()
    check()
    print("passed")
    """,
        *(loop, way),
        timeout_seconds=10,
    )
    assert child.stdout == "passed\n"


@each_loop
@each_way
@pytest.mark.parametrize("when", ["before", "inside"])
def test_interrupt_handler_of_the_user_is_left_alone(loop: str, way: str, when: str) -> None:
    run_child(
        SIGNALS
        + f"""
    def note(*_):
        log.append("heard")

    async def main():
        await way()
        if {when!r} == "inside":
            # Only the main thread may.
            await (asyncio.sleep(0, install()) if not moves else sync_to_async(install)())
        assert signal.getsignal(signal.SIGINT) is note
        await send()
        while not log:
            await asyncio.sleep(0.001)

    def install():
        signal.signal(signal.SIGINT, note)

    if {when!r} == "before":
        install()
    AsyncToSync(main, loop_factory=factory)()
    assert log == ["heard"]
    assert signal.getsignal(signal.SIGINT) is note
    check()
    """,
        *(loop, way),
        timeout_seconds=10,
    )


# Not uvloop in the main thread: it reports what a handler raises as it does with a callback's error.
@pytest.mark.parametrize(
    ("loop", "way"), [("asyncio", "here"), ("asyncio", "in_worker"), ("uvloop", "in_worker")]
)
def test_other_handler_that_raises_is_taken_for_an_interruption(loop: str, way: str) -> None:
    run_child(
        SIGNALS
        + """
    class Alarm(Exception):
        pass

    def raise_alarm(*_):
        raise Alarm

    signal.signal(signal.SIGALRM, raise_alarm)

    async def main():
        await way()
        try:
            # Later, when the main thread waits for what comes next.
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            await asyncio.sleep(5)
        finally:
            await asyncio.sleep(0.01)
            log.append("cleaned up")

    call(main, Alarm)
    assert log == ["cleaned up"]
    check()
    """,
        *(loop, way),
        timeout_seconds=10,
    )


@each_loop
@each_way
def test_interrupt_while_another_thread_runs_its_loop_is_the_main_thread_s(
    loop: str, way: str
) -> None:
    run_child(
        SIGNALS
        + """
    async def other():
        await way()
        handlers.add(signal.getsignal(signal.SIGINT))
        await send()
        await asyncio.to_thread(interrupted.wait, 10)
        log.append("not cancelled")

    interrupted = threading.Event()
    thread = threading.Thread(target=AsyncToSync(other, loop_factory=factory))
    try:
        thread.start()
        time.sleep(5)
    except KeyboardInterrupt:
        log.append("interrupted")
        interrupted.set()
    thread.join()
    assert log == ["interrupted", "not cancelled"], log
    assert handlers == {signal.default_int_handler}
    check()
    """,
        *(loop, way),
        timeout_seconds=10,
    )


def test_interrupt_where_no_handler_can_be_set_is_python_s_own_affair() -> None:
    """As in a subinterpreter."""
    run_child(
        SIGNALS
        + """
    def refuse(*_):
        raise ValueError("signal only works in main thread of the main interpreter")

    set_handler, signal.signal = signal.signal, refuse
    check()
    signal.signal = set_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """,
        *("asyncio", "here"),
        timeout_seconds=10,
    )


@each_way
def test_interrupt_while_leftovers_end_waits_for_them(way: str) -> None:
    """P6: what the call started ends with it, unless it is interrupted once more."""
    run_child(
        SIGNALS
        + """
    async def leftover():
        try:
            await asyncio.sleep(5)
        finally:
            await send()
            await asyncio.sleep(0.1)
            log.append("cleaned up")

    async def main():
        tasks.append(asyncio.create_task(leftover()))
        await way()

    tasks = []
    call(main, KeyboardInterrupt)
    assert log == ["cleaned up"], log
    """,
        *("asyncio", way),
        timeout_seconds=10,
    )
