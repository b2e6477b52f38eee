"""What the tests of the field failures share: homes to run in, traces to compare, random trees."""

import asyncio
import operator
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from django_asyncbridge.bridge.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from tests.support import run_in_thread

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]


def on_plain_loop(main: Main[T]) -> T:
    """Run `main` where the process's shared thread is the home thread."""
    return run_in_thread(lambda: asyncio.run(main()))


def in_context(main: Main[T]) -> T:
    """Run `main` where the thread of a `ThreadSensitiveContext` is the home thread."""

    async def request() -> T:
        async with ThreadSensitiveContext():
            return await main()

    return run_in_thread(lambda: asyncio.run(request()))


def below_async_to_sync(main: Main[T]) -> T:
    """Run `main` where the sync caller that waits for it is the home thread."""
    return run_in_thread(async_to_sync(main))


#: Every kind of home thread, by the name a test shows.
HOMES: dict[str, Callable[[Main[Any]], Any]] = {
    "shared-thread": on_plain_loop,
    "context": in_context,
    "sync-caller": below_async_to_sync,
}


async def end_of(task: "asyncio.Task[Any]") -> object:
    """Wait for `task`, and return its result or exception."""
    return (await asyncio.gather(task, return_exceptions=True))[0]


def noop() -> None:
    """Do nothing; run in a thread, it shows that the thread is done with what came before."""


async def loop_turns(count: int = 5) -> None:
    """Let the loop take some turns, so that what was already scheduled has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(event: threading.Event) -> None:
    """Wait, without blocking the loop, until another thread has set `event`."""
    assert await asyncio.to_thread(event.wait, 10)


def traces() -> dict[str, object]:
    """Whatever the bridge notes in the current thread and context, to be compared before and after."""
    return {
        "loop": getattr(SyncToAsync.threadlocal, "main_event_loop", None),
        "task_context": getattr(SyncToAsync.threadlocal, "task_context", None),
        "executor": getattr(AsyncToSync.executors, "current", None),
        "deadlock": SyncToAsync.deadlock_context.get(False),
        "context": SyncToAsync.thread_sensitive_context.get(None),
    }


class Work:
    """A sync function that ends when it is allowed to, and notes that it did."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()
        self.effects: list[str] = []
        self.error: BaseException | None = None

    def __call__(self) -> str:
        self.started.set()
        assert self.release.wait(10)
        self.effects.append("function ended")
        if self.error is not None:
            raise self.error
        return "result"


class Tracked:
    """An object one can hold a weak reference to."""


# --- Random trees of calls (C11) ---------------------------------------------

#: How an async function may call: (async, task) an async one, (thread, pool) a sync one.
FROM_ASYNC = ("await", "task", "thread", "pool")
#: How a sync function may call: a sync one, or an async one through the bridge.
FROM_SYNC = ("call", "bridge")


@dataclass(frozen=True)
class Node:
    """One call of a tree: how it is called, what it calls, and whether all at the same time."""

    way: str
    children: tuple["Node", ...]
    together: bool


def random_node(rng: random.Random, way: str, depth: int) -> Node:
    """Make the tree below a call that is made in that `way`, at most `depth` calls deep."""
    ways: Sequence[str] = FROM_SYNC if way in ("call", "thread", "pool") else FROM_ASYNC
    count = rng.choice((1, 1, 2, 2, 3)) if depth else 0
    children = tuple(random_node(rng, rng.choice(ways), depth - 1) for _ in range(count))
    return Node(way, children, rng.random() < 0.4)


class Home:
    """The thread that thread-sensitive calls of one chain must run in; the first one settles it."""

    def __init__(self, thread: int | None = None) -> None:
        self.thread = thread

    def check(self) -> None:
        """Raise unless the current thread is this home."""
        here = threading.get_ident()
        self.thread = self.thread or here
        assert here == self.thread, f"in thread {here}, not in its home {self.thread}"


class Request:
    """Runs one random tree and knows which sync functions are running."""

    def __init__(self, seed: int, pool: ThreadPoolExecutor) -> None:
        self.tree = random_node(random.Random(seed), "await", 5)
        self.pool = pool
        self.running: set[object] = set()

    async def run(self) -> None:
        """Run the tree inside a context of its own."""
        async with ThreadSensitiveContext():
            await self.run_async(self.tree, Home())

    async def run_async(self, node: Node, home: Home) -> None:
        """Do what the async function of `node` does: call its children, in turn or at once."""
        await asyncio.sleep(0)
        if node.together:
            # Not gather(): that ends at the first child that was cancelled.
            async with asyncio.TaskGroup() as group:
                for child in node.children:
                    group.create_task(self.start(child, home))
        else:
            for child in node.children:
                await self.start(child, home)

    async def start(self, node: Node, home: Home) -> None:
        """Call `node` from async code."""
        if node.way == "await":
            await self.run_async(node, home)
        elif node.way == "task":
            await asyncio.create_task(self.run_async(node, home))
        elif node.way == "thread":
            await sync_to_async(self.run_sync)(node, home)
        else:
            in_pool = sync_to_async(self.run_sync, thread_sensitive=False, executor=self.pool)
            await in_pool(node, Home())

    def run_sync(self, node: Node, home: Home) -> None:
        """Do what the sync function of `node` does, after a check of its thread."""
        home.check()
        call = object()
        self.running.add(call)
        try:
            for child in node.children:
                if child.way == "call":
                    self.run_sync(child, home)
                else:
                    async_to_sync(self.run_async)(child, Home(threading.get_ident()))
                home.check()
        finally:
            self.running.remove(call)


async def run_requests(seed: int, pool: ThreadPoolExecutor) -> int:
    """Run 8 random requests at once, cancel about half of them at random moments, and check each.

    Returns how many requests ended while a sync function of theirs was still running.
    """
    rng = random.Random(seed)
    requests = [Request(rng.getrandbits(32), pool) for _ in range(8)]
    tasks = [asyncio.create_task(request.run()) for request in requests]

    async def cancel(task: "asyncio.Task[None]", delay_seconds: float) -> bool:
        await asyncio.sleep(delay_seconds)
        hit = task.cancel()
        # Some a second time, while they clean up.
        await asyncio.sleep(rng.choice((0, 0, 0.002)))
        task.cancel()
        return hit

    victims = [task for task in tasks if rng.random() < 0.5]
    hits = await asyncio.gather(*(cancel(task, rng.uniform(0, 0.02)) for task in victims))
    await asyncio.wait(tasks)
    for task in tasks:
        if task in victims and hits[victims.index(task)]:
            assert task.cancelled(), f"seed {seed}: a cancelled request ended otherwise: {task}"
        else:
            task.result()
    return sum(bool(request.running) for request in requests)


def random_trees(first_seed: int, rounds: int) -> int:
    """Run that many rounds of random requests on one loop; the threads they started must end.

    Returns how many requests ended while a sync function of theirs was still running.
    """

    async def main() -> int:
        # Wide enough that calls which wait for calls in the same pool never use it up.
        with ThreadPoolExecutor(256) as pool:
            return sum([await run_requests(first_seed + i, pool) for i in range(rounds)])

    # The bridge's workers, which are used again, are not leaks.
    asyncio.run(sync_to_async(noop)())
    before = set(threading.enumerate())
    overtaken = asyncio.run(main())
    left = {
        one for one in threading.enumerate() if not one.name.startswith("asyncbridge-")
    } - before
    # The last thing a thread did may be to let this one go on.
    list(map(operator.methodcaller("join", 5), left))
    assert not any(thread.is_alive() for thread in left), left
    return overtaken
