"""Kept loops: whose they are, how long they live, and what a forked child does with them."""

import asyncio
import gc
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import uvloop

from django_asyncbridge.bridge._kept_loops import LoopSet
from django_asyncbridge.bridge._own_loop import LoopFactory, OwnLoop
from django_asyncbridge.bridge.sync import AsyncToSync, async_to_sync, sync_to_async
from tests.support import run_child, run_in_thread

each_factory = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


kept_loop = async_to_sync(running_loop)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def loops() -> Iterator[LoopSet]:
    loops = LoopSet()
    yield loops
    loops.close()


# --- Which loop ------------------------------------------------------------------


@each_factory
def test_loop_that_is_free_is_taken_again(loops: LoopSet, factory: LoopFactory | None) -> None:
    own = loops.take(factory)
    assert own.in_use
    own.in_use = False
    loops.put_back(own)
    assert loops.take(factory) is own
    assert own.in_use


@each_factory
def test_loop_taken_while_the_kept_one_is_in_use_is_closed_when_it_is_put_back(
    loops: LoopSet, factory: LoopFactory | None
) -> None:
    kept = loops.take(factory)
    other = loops.take(factory)
    assert other is not kept
    loops.put_back(other)
    assert other.loop.is_closed()
    loops.put_back(kept)
    assert not kept.loop.is_closed()


@each_factory
@pytest.mark.parametrize("spoiled", [False, True])
def test_loop_that_was_closed_or_given_up_is_replaced(
    loops: LoopSet, factory: LoopFactory | None, spoiled: bool
) -> None:
    first = loops.take(factory)
    first.in_use = False
    first.spoiled = spoiled
    if not spoiled:
        first.close()
    loops.put_back(first)
    second = loops.take(factory)
    assert second is not first
    second.in_use = False
    loops.put_back(second)
    assert loops.take(factory) is second
    first.close()


def test_loops_of_different_factories_are_kept_side_by_side(loops: LoopSet) -> None:
    factories = [None, uvloop.new_event_loop, asyncio.SelectorEventLoop]
    taken = [loops.take(factory) for factory in factories]
    for own in taken:
        own.in_use = False
        loops.put_back(own)
    assert [loops.take(factory) for factory in factories] == taken
    assert [type(own.loop) for own in taken[1:]] == [uvloop.Loop, asyncio.SelectorEventLoop]
    loops.close()
    assert not any(own.loop.is_closed() for own in taken), "one that is in use was closed"
    for own in taken:
        loops.put_back(own)
    assert all(own.loop.is_closed() for own in taken)


def test_loop_whose_factory_is_gone_is_closed() -> None:
    """No leak for whoever makes the factory anew for each call."""

    def call() -> asyncio.AbstractEventLoop:
        return AsyncToSync(running_loop, loop_factory=partial(asyncio.new_event_loop))()

    loop = call()
    gc.collect()
    try:
        assert loop.is_closed()
    finally:
        loop.close()


# --- How long it lives -----------------------------------------------------------


@each_factory
def test_kept_loop_is_each_thread_s_own_and_is_closed_at_the_thread_s_end(
    factory: LoopFactory | None,
) -> None:
    function = AsyncToSync(running_loop, loop_factory=factory)

    def call_twice() -> list[asyncio.AbstractEventLoop]:
        loops = [function(), function()]
        assert not loops[0].is_closed()
        return loops

    threads: list[threading.Thread] = []

    def call() -> list[asyncio.AbstractEventLoop]:
        threads.append(threading.current_thread())
        return call_twice()

    first, second = run_in_thread(call)
    threads[0].join(10)
    assert first is second
    assert first is not function()
    assert first.is_closed()


@each_factory
def test_kept_loop_is_closed_at_its_thread_s_end_while_frames_that_ran_it_live_on(
    factory: LoopFactory | None,
) -> None:
    """An error's traceback leads to such frames; the collector would finalize the loop before what closes it."""
    frames: list[FrameType] = []

    async def keep_frames() -> asyncio.AbstractEventLoop:
        frames.extend(own_frames())
        return asyncio.get_running_loop()

    def call() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        return AsyncToSync(keep_frames, loop_factory=factory)(), threading.current_thread()

    loop, thread = run_in_thread(call)
    thread.join(10)
    assert loop.is_closed()
    assert frames


@each_factory
def test_kept_loop_that_goes_with_its_factory_and_frames_is_closed_before_it_is_finalized(
    factory: LoopFactory | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def call() -> None:
        frames: list[FrameType] = []

        async def keep_frames() -> None:
            frames.extend(own_frames())

        AsyncToSync(keep_frames, loop_factory=partial(factory or asyncio.new_event_loop))()
        assert frames

    gc.collect()
    before = open_files()
    call()
    gc.collect()
    assert complaints == []
    assert open_files() <= before


def own_frames() -> Iterator[FrameType]:
    """Yield the frames up the stack that belong to an `OwnLoop`."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), OwnLoop):
            yield frame
        frame = frame.f_back


def test_loop_made_in_place_of_one_that_was_given_up_goes_with_the_factory(loops: LoopSet) -> None:
    factory = partial(asyncio.new_event_loop)
    first = loops.take(factory)
    first.spoiled, first.in_use = True, False
    first.close()
    second = loops.take(factory)
    second.in_use = False
    loops.put_back(second)
    del factory
    assert second.loop.is_closed()


@each_factory
def test_kept_loops_of_many_threads_leave_no_open_files(factory: LoopFactory | None) -> None:
    """Warnings are errors: a loop that is not closed would warn, too."""

    async def open_a_connection() -> None:
        await sync_to_async(int)()
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        theirs.close()
        writer.close()
        await writer.wait_closed()

    function = AsyncToSync(open_a_connection, loop_factory=factory)
    before = -1
    for count in range(300):
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()
        if count == 20:
            before = open_files()
    # Fewer, if a worker of an earlier test has ended meanwhile.
    assert open_files() <= before


@each_factory
def test_kept_loop_of_the_main_thread_is_closed_at_exit(factory: LoopFactory | None) -> None:
    """A loop that is not would warn on standard error."""
    child = run_child(
        f"""
        import asyncio, atexit, uvloop
        from django_asyncbridge.bridge.sync import AsyncToSync, sync_to_async

        loops = []
        # Called after what was registered later.
        atexit._clear()
        atexit.register(lambda: print(loops[0].is_closed()))
        from django_asyncbridge.bridge import _kept_loops
        atexit.register(_kept_loops._close_at_exit)

        async def main():
            loops.append(asyncio.get_running_loop())
            await sync_to_async(int)()

        AsyncToSync(main, loop_factory={"uvloop.new_event_loop" if factory else None})()
        """,
        PYTHONWARNINGS="error",
    )
    assert child.stdout == "True\n"
    assert child.stderr == ""


# --- Fork ------------------------------------------------------------------------

FORK = """
    import asyncio, faulthandler, os, socket, sys, threading, traceback, warnings
    import uvloop
    from django_asyncbridge.bridge.sync import (
        AsyncSingleThreadContext, AsyncToSync, async_to_sync, sync_to_async
    )

    # Python 3.12 and later warn of every fork with threads, which is what is tested here.
    warnings.simplefilter("ignore", DeprecationWarning)
    factory = {"asyncio": None, "uvloop": uvloop.new_event_loop}[sys.argv[1]]
    end = sys.argv[2]
    parent = os.getpid()

    def on_loop(function):
        return AsyncToSync(function, loop_factory=factory)()

    class Watched:
        '''A file that a kept loop watches over several calls.'''

        def __init__(self):
            self.ours, self.theirs = socket.socketpair()
            self.ours.setblocking(False)
            on_loop(self.watch)

        async def watch(self):
            asyncio.get_running_loop().add_reader(self.ours, self.read)

        def read(self):
            self.ours.recv(1)
            self.came.set()

        async def wait(self):
            self.came = asyncio.Event()
            self.theirs.send(b"x")
            await asyncio.wait_for(self.came.wait(), 2)

        def check(self):
            on_loop(self.wait)

    class OtherThread(threading.Thread):
        '''A thread with a kept loop of its own that watches a file.'''

        def __init__(self):
            super().__init__()
            self.ready, self.go = threading.Event(), threading.Event()
            self.found = None

        def run(self):
            watched = Watched()
            watched.check()
            self.ready.set()
            self.go.wait(10)
            watched.check()
            self.found = True

    def use_in_child():
        async def works():
            await asyncio.sleep(0.001)
            return await sync_to_async(lambda: async_to_sync(asyncio.sleep)(0, "works"))()

        print("child", on_loop(works), flush=True)
        Watched().check()

    def fork():
        pid = os.fork()
        if pid != 0:
            pids.append(pid)
            return
        # Whoever waits for this process's output would wait for its child as well.
        faulthandler.dump_traceback_later(3, exit=True)
        try:
            # A thread of its own: this one may be running a loop.
            thread = threading.Thread(target=use_in_child)
            thread.start()
            thread.join(10)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        if end == "_exit":
            os._exit(3)
        if end == "exit":
            sys.exit(3)

    async def fork_in_coroutine():
        await asyncio.sleep(0)
        fork()

    async def fork_and_be_woken():
        await fork_in_coroutine()
        if os.getpid() == parent:
            ended = asyncio.to_thread(os.waitid, os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
            await asyncio.wait_for(ended, 3)

    async def fork_in_sync_function():
        await sync_to_async(fork)()

    pids = []
    other = OtherThread()
    other.start()
    other.ready.wait(10)
    watched = Watched()
    watched.check()

    def finish():
        global watched
        if os.getpid() != parent:
            # The child's only thread, once more, when all of the call is over.
            use_in_child()
            sys.exit(3)
        code = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
        watched.check()
        other.go.set()
        other.join()
        assert other.found
        print("parent: child ended with", code)
"""

each_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
each_end = pytest.mark.parametrize("end", ["_exit", "exit", "return"])


@each_loop
@each_end
def test_fork_beside_kept_loops_leaves_the_parent_s_watching_their_files(
    loop: str, end: str
) -> None:
    """P8: the kernel's list of watched files is shared with the child."""
    assert_undisturbed("fork()", loop, end)


@each_loop
@each_end
def test_fork_in_a_coroutine_on_a_kept_loop_leaves_the_parent_s_watching_their_files(
    loop: str, end: str
) -> None:
    assert_undisturbed("on_loop(fork_in_coroutine)", loop, end)


@each_loop
@each_end
def test_fork_in_a_coroutine_on_a_new_loop_leaves_the_parent_s_watching_its_files(
    loop: str, end: str
) -> None:
    way = "AsyncToSync(fork_and_be_woken, True, loop_factory=factory)()"
    assert_undisturbed(way, loop, end)


def assert_undisturbed(way: str, loop: str, end: str) -> None:
    """Fork in some way, and see that the child works and the parent does not notice."""
    child = run_child(f"{FORK}\n    {way}\n    finish()\n", loop, end, timeout_seconds=15)
    lines = child.stdout.splitlines()
    assert lines[-1] == "parent: child ended with 3"
    assert lines[:-1] == ["child works"] * (2 if end == "return" else 1)
    assert child.stderr == ""


def test_fork_beside_a_kept_loop_that_was_closed_is_none_of_the_child_s_business() -> None:
    source = """
    async def running_loop():
        return asyncio.get_running_loop()

    AsyncToSync(running_loop, loop_factory=asyncio.SelectorEventLoop)().close()
    fork()
    """
    child = run_child(f"{FORK}{source}\n    finish()\n", "asyncio", "_exit")
    assert child.stderr == ""


@each_loop
@each_end
def test_fork_in_a_function_that_a_moved_loop_waits_for_ends_the_call_in_the_child(
    loop: str, end: str
) -> None:
    """P8: the child cannot return to code that exists in the parent only, and says so."""
    source = f"{FORK}\n    on_loop(fork_in_sync_function)\n    finish()\n"
    child = run_child(source, loop, end, timeout_seconds=8)
    lines = child.stdout.splitlines()
    if end == "_exit":
        assert lines[-1] == "parent: child ended with 3"
        assert child.stderr == ""
    else:
        assert lines[-1] == "parent: child ended with 1"
        assert "the process was forked inside a sync function" in child.stderr
