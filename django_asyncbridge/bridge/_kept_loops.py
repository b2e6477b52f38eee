"""The event loops that threads keep for their top-level `async_to_sync` calls.

A loop lives as long as its thread, or until the interpreter ends, so what was opened on it in one call is there in
the next. A call that comes while the thread's loop is in use, or asks for a new one, gets one that is
closed at its end.

Every loop is closed by name: the traceback of an error leads to the frames that ran a loop, so the collector may come
upon a loop together with all that refers to it, and finalizes the loop first.

Which thread may touch what. Each thread its own entries. At its end they are closed by whatever thread clears its
thread-locals, when no other can use them.
"""

import asyncio
import atexit
import contextlib
import threading
import weakref

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._own_loop import LoopFactory, OwnLoop
from django_asyncbridge.bridge._run import Run

__all__ = ("LoopSet", "run_on_kept_loop")


class LoopSet:
    """The loops of one thread, or of one block, by what made them.

    A loop whose factory is thrown away goes with it, as does the thread's last one with the thread.
    """

    __slots__ = ("__weakref__", "_loops", "default")

    def __init__(self) -> None:
        self.default: OwnLoop | None = None
        self._loops: dict[weakref.ref[LoopFactory], OwnLoop] = {}
        _all.add(self)

    def __del__(self) -> None:
        # At the end of its thread. At the end of the interpreter half of what this needs may be gone.
        with contextlib.suppress(Exception):
            self.close()

    def take(self, factory: LoopFactory | None, new: bool = False) -> OwnLoop:
        """Return a loop to run one coroutine on, for the caller alone: the one kept if that is free.

        Args:
            factory: makes the loop; None for asyncio's.
            new: take one that is not kept.
        """
        kept = self.default if factory is None else self._loops.get(weakref.ref(factory))
        own = None if new else kept
        if own is None or own.in_use or own.spoiled or own.loop.is_closed():
            own = OwnLoop(factory or asyncio.new_event_loop)
            if not new and (kept is None or not kept.in_use):
                self._keep(own, factory)
        own.in_use = True
        return own

    def _keep(self, own: OwnLoop, factory: LoopFactory | None) -> None:
        if factory is None:
            self.default = own
            return
        for of in list(self._loops):
            if of() is None:
                del self._loops[of]
        # A key that is already there would stay, and with it the loop before.
        self._loops.pop(weakref.ref(factory), None)
        # Whoever uses the loop refers to the factory, so it is free by then.
        self._loops[weakref.ref(factory, lambda _: own.close())] = own

    def put_back(self, own: OwnLoop) -> None:
        """Keep a loop, if it is one of these, or close it."""
        if own is not self.default and own not in self._loops.values():
            own.close()

    def close(self) -> None:
        """Close the loops."""
        loops = [own for own in (self.default, *self._loops.values()) if own is not None]
        self.default = None
        self._loops.clear()
        for own in loops:
            # One that is in use is closed when it is put back.
            if not own.in_use:
                own.close()


_all: "weakref.WeakSet[LoopSet]" = weakref.WeakSet()


class _Kept(threading.local):
    def __init__(self) -> None:
        self.loops = LoopSet()


_kept = _Kept()


def run_on_kept_loop(run: Run, factory: LoopFactory | None, new: bool) -> None:
    """Run a coroutine on the calling thread's own loop, and wait until all it left has ended.

    Args:
        run: the coroutine.
        factory: makes the loop; None for asyncio's.
        new: use a new loop instead, and close it at the end.
    """
    # No variable of this frame holds the thread's loops: an error's traceback leads here, by way of the frames that ran
    # the loop, and what shows the error's variables keeps them even if they are deleted (before Python 3.13).
    own = _kept.loops.take(factory, new)
    try:
        own.run(run)
    finally:
        _kept.loops.put_back(own)
        del own, run


def _reset_after_fork() -> None:
    for loops in list(_all):
        loops.close()
    _kept.__dict__.clear()
    _kept.loops = LoopSet()


def _close_at_exit() -> None:
    _kept.loops.close()


_fork.on_fork(_reset_after_fork)
atexit.register(_close_at_exit)
