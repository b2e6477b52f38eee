"""The process-wide registries of the bridge: who waits, who runs what, and for whom.

Both wrappers read and write here; their class attributes of the same names (asgiref's) are these objects.

Which thread may touch what:

- `threadlocal`: each thread its own. While a thread runs a sync function for async code, it points at the
  event loop that waits (`main_event_loop`, `main_event_loop_pid`) and at the tasks which that function waits
  for in turn (`task_context`). `SyncToAsync.thread_handler` puts back what was there before.
- `current_executor`, `thread_sensitive_context`, `deadlock_context`, `async_single_thread_context`: live in
  the context, so a call chain sees its own.
- `loop_thread_executors`: an entry is written and removed by the thread of its loop, and read there.
- `context_to_thread_executor`, `single_thread_context_executors`: written under `registry_lock`. The thread that has
  it may take it again: finalizers and signal handlers run anywhere, and may call the bridge.

In a forked child the registries are emptied: they name threads and loops of the parent.
"""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from django_asyncbridge.bridge import _fork, _mirror
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._workers import WorkerPool
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.local import Local

if TYPE_CHECKING:
    from django_asyncbridge.bridge._contexts import ThreadSensitiveContext
    from django_asyncbridge.bridge._single_thread import AsyncSingleThreadContext

__all__ = (
    "Caller",
    "async_single_thread_context",
    "caller_of_thread",
    "calling_loop",
    "context_to_thread_executor",
    "current_executor",
    "deadlock_context",
    "default_workers",
    "executors",
    "loop_thread_executors",
    "loop_workers",
    "registry_lock",
    "request_workers",
    "resolve_executor",
    "runs_anywhere",
    "set_caller_of_thread",
    "shared_worker",
    "shared_workers",
    "single_thread_context_executors",
    "thread_sensitive_context",
    "threadlocal",
)

threadlocal = threading.local()

# The executor of the nearest sync caller up this call chain that waits in `async_to_sync`. A plain context variable, because
# every crossing reads it; `executors` shows it under asgiref's name.
current_executor: "contextvars.ContextVar[CurrentThreadExecutor | None]" = contextvars.ContextVar(
    "django_asyncbridge.current_executor", default=None
)


class _Executors(Local):  # type: ignore[misc]  # final for users
    """A `Local` with one name, `current`."""

    __slots__ = ()

    # Of an ordinary object: a `Local` would look for names that were set.
    __getattribute__ = object.__getattribute__
    __setattr__ = object.__setattr__  # type: ignore[assignment]  # the same but for a parameter's name
    __delattr__ = object.__delattr__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is only 'current' here, not {name!r}", name=name, obj=self)

    @property
    def current(self) -> CurrentThreadExecutor | None:
        return current_executor.get()

    @current.setter
    def current(self, executor: CurrentThreadExecutor | None) -> None:
        current_executor.set(executor)

    @current.deleter
    def current(self) -> None:
        current_executor.set(None)


executors: Local = object.__new__(_Executors)

thread_sensitive_context: "contextvars.ContextVar[ThreadSensitiveContext]" = contextvars.ContextVar(
    "thread_sensitive_context"
)
deadlock_context = _mirror.mark
async_single_thread_context: "contextvars.ContextVar[AsyncSingleThreadContext]" = (
    contextvars.ContextVar("async_single_thread_context")
)

loop_thread_executors: dict[asyncio.AbstractEventLoop, CurrentThreadExecutor] = {}
context_to_thread_executor: "weakref.WeakKeyDictionary[ThreadSensitiveContext, Executor]" = (
    weakref.WeakKeyDictionary()
)
single_thread_context_executors: "weakref.WeakKeyDictionary[AsyncSingleThreadContext, Executor]" = (
    weakref.WeakKeyDictionary()
)
registry_lock = threading.RLock()

# For thread-sensitive work outside of any context and below no waiting sync caller; never given back.
shared_workers = WorkerPool("shared", maximum=1, idle_seconds=None)
shared_worker = Lease(shared_workers, "the process")
# For thread-sensitive work in a `ThreadSensitiveContext`.
request_workers = WorkerPool("request")
# For work that is not thread-sensitive and names no executor. As many as Django's default threads in WSGI servers
# and more than asyncio's own default on most machines; not measured.
default_workers = WorkerPool("default", maximum=32)
# For event loops that have to leave the thread which waits for them.
loop_workers = WorkerPool("loop")

# Tells of sync functions that never block and so need no thread; set when the first one is marked as such.
runs_anywhere: Callable[[object], bool] | None = None

# Returns the executor of a name, for `sync_to_async(executor="name")`; set by whoever knows names, the Django app.
resolve_executor: Callable[[str], Executor] | None = None


def calling_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that waits for the sync function this thread is running, if any."""
    # By way of the dictionary: a thread's attributes are looked up slowly.
    own = threadlocal.__dict__
    if own.get("main_event_loop_pid") != _fork.pid():
        return None
    loop: asyncio.AbstractEventLoop | None = own.get("main_event_loop")
    return loop


Caller = tuple[asyncio.AbstractEventLoop | None, int | None, Any]


def caller_of_thread() -> Caller:
    """Return which loop waits for this thread, in which process, and the tasks the thread waits for."""
    own = threadlocal.__dict__
    return own.get("main_event_loop"), own.get("main_event_loop_pid"), own.get("task_context")


def set_caller_of_thread(caller: Caller) -> None:
    """Make another caller this thread's, or an earlier one again."""
    own = threadlocal.__dict__
    own["main_event_loop"], own["main_event_loop_pid"], own["task_context"] = caller


def _reset_after_fork() -> None:
    global registry_lock
    registry_lock = threading.RLock()
    loop_thread_executors.clear()
    context_to_thread_executor.clear()
    single_thread_context_executors.clear()


_fork.on_fork(_reset_after_fork)
