"""Call chains that cross between sync and async code, one level calling the next through the bridge.

A `Chain` says which level is where, a `Mode` how the calls are made. A `Walk` goes down the chain and back; what it
does and notes on its way is up to its subclasses in experiments.py.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.differential.library import Library

__all__ = ("CHAINS", "Chain", "Mode", "Walk", "modes_of")


@dataclass(frozen=True)
class Chain:
    """The levels of a chain: level 0 is outermost, each further one on the other side of the bridge."""

    outermost_is_async: bool
    depth: int

    def is_async(self, level: int) -> bool:
        """Tell on which side a level is."""
        return self.outermost_is_async == (level % 2 == 0)

    @property
    def name(self) -> str:
        """The levels as letters: "sas" is sync, async, sync."""
        return "".join("a" if self.is_async(level) else "s" for level in self.levels)

    @property
    def levels(self) -> range:
        """The numbers of all levels."""
        return range(self.depth + 1)


MAXIMUM_DEPTH = 4
CHAINS = [
    Chain(outermost_is_async, depth)
    for outermost_is_async in (False, True)
    for depth in range(1, MAXIMUM_DEPTH + 1)
]


async def awaited(call: Awaitable[Any]) -> Any:
    """Await in the same task."""
    return await call


async def in_task(call: Any) -> Any:
    """Await a task of its own."""
    return await asyncio.create_task(call)


async def in_gather(call: Awaitable[Any]) -> Any:
    """Await as one of several."""
    (result, _) = await asyncio.gather(call, asyncio.sleep(0))
    return result


async def in_wait_for(call: Awaitable[Any]) -> Any:
    """Await with a limit that is not reached."""
    return await asyncio.wait_for(call, 60)


async def in_shield(call: Awaitable[Any]) -> Any:
    """Await what is not cancelled with the awaiter."""
    return await asyncio.shield(call)


@dataclass(frozen=True)
class Mode:
    """How the levels call each other, and what surrounds them."""

    name: str
    sync_options: dict[str, Any] = field(default_factory=dict)
    async_options: dict[str, Any] = field(default_factory=dict)
    style: Callable[[Any], Awaitable[Any]] = awaited
    # Each call of a sync level gets an executor, or a context, of its own.
    own_executor: bool = False
    own_context: bool = False
    # Which async levels enter a ThreadSensitiveContext, and with an executor of its own or without.
    contexts: str = ""
    single_thread: bool = False


MODES = [
    Mode("plain"),
    Mode("free", {"thread_sensitive": False}),
    Mode("executor", {"thread_sensitive": False}, own_executor=True),
    Mode("owncontext", own_context=True),
    Mode("newloop", async_options={"force_new_loop": True}),
    Mode("task", style=in_task),
    Mode("gather", style=in_gather),
    Mode("waitfor", style=in_wait_for),
    Mode("shield", style=in_shield),
    Mode("context", contexts="first"),
    Mode("contexts", contexts="every"),
    Mode("ownthread", contexts="first with executor"),
    Mode("singlethread", single_thread=True),
]
# Pairs of these, for the longest chains only.
COMBINED_MODES = [
    Mode("free-newloop", {"thread_sensitive": False}, {"force_new_loop": True}),
    Mode("free-owncontext", {"thread_sensitive": False}, own_context=True),
    Mode("context-free", {"thread_sensitive": False}, contexts="first"),
    Mode("context-newloop", async_options={"force_new_loop": True}, contexts="first"),
    Mode("context-task", style=in_task, contexts="first"),
    Mode("ownthread-gather", style=in_gather, contexts="first with executor"),
]


def modes_of(chain: Chain) -> list[Mode]:
    """Return the modes in which a chain is tried."""
    return MODES if chain.depth < MAXIMUM_DEPTH else MODES + COMBINED_MODES


class Walk:
    """Goes down one chain and back: each level calls the next, the deepest comes to `bottom`.

    `enter` and `leave` are called in each level's own thread and context, before and after the call of
    the next.
    """

    def __init__(self, library: Library, chain: Chain, mode: Mode) -> None:
        self.library = library
        self.chain = chain
        self.mode = mode
        self.executors: list[ThreadPoolExecutor] = []

    def enter(self, level: int) -> None:
        """Note something at the beginning of a level."""

    def leave(self, level: int) -> None:
        """Note something at the end of a level, also when it raises."""

    def bottom(self, level: int) -> None:
        """Do something in the deepest level if that is sync."""

    async def async_bottom(self, level: int) -> None:
        """Do something in the deepest level if that is async."""
        self.bottom(level)

    def walk(self) -> list[int]:
        """Go, and return the levels whose results came back."""
        try:
            if self.chain.outermost_is_async:
                return asyncio.run(self.async_level(0))
            return self.sync_level(0)
        finally:
            for executor in self.executors:
                executor.shutdown()

    def new_executor(self, workers: int) -> ThreadPoolExecutor:
        """Make an executor that lives as long as the walk."""
        executor = ThreadPoolExecutor(workers)
        self.executors.append(executor)
        return executor

    def sync_level(self, level: int) -> list[int]:
        """Be a sync level."""
        self.enter(level)
        try:
            if level == self.chain.depth:
                self.bottom(level)
                return [level]
            with self.around_sync(level):
                return [level, *self.call_async(level + 1)]
        finally:
            self.leave(level)

    async def async_level(self, level: int) -> list[int]:
        """Be an async level."""
        self.enter(level)
        try:
            if level == self.chain.depth:
                await self.async_bottom(level)
                return [level]
            async with self.around_async(level):
                return [level, *await self.mode.style(self.call_sync(level + 1))]
        finally:
            self.leave(level)

    def call_async(self, level: int) -> list[int]:
        """Call an async level from a sync one."""
        wrapped = self.library.async_to_sync(self.async_level, **self.mode.async_options)
        result: list[int] = wrapped(level)
        return result

    def call_sync(self, level: int) -> Awaitable[list[int]]:
        """Call a sync level from an async one."""
        options = dict(self.mode.sync_options)
        if self.mode.own_executor:
            options["executor"] = self.new_executor(1)
        if self.mode.own_context:
            options["context"] = contextvars.copy_context()
        result: Awaitable[list[int]] = self.library.sync_to_async(self.sync_level, **options)(level)
        return result

    def around_sync(self, level: int) -> contextlib.AbstractContextManager[object]:
        """Return what surrounds the call of a sync level."""
        if self.mode.single_thread and level <= 1:
            context: contextlib.AbstractContextManager[object]
            context = self.library.AsyncSingleThreadContext()
            return context
        return contextlib.nullcontext()

    def around_async(self, level: int) -> contextlib.AbstractAsyncContextManager[object]:
        """Return what surrounds the call of an async level."""
        contexts = self.mode.contexts
        if contexts == "every" or (contexts and level <= 1):
            options = {"executor": self.new_executor(1)} if "executor" in contexts else {}
            context: contextlib.AbstractAsyncContextManager[object]
            context = self.library.ThreadSensitiveContext(**options)
            return context
        return contextlib.nullcontext()
