"""The process-wide registries of the bridge: who waits, who runs what, and for whom.

Both wrappers read and write here; their class attributes of the same names (asgiref's) are these objects.

Which thread may touch what:

- `threadlocal`: each thread its own. While a thread runs a sync function for async code, it points at the
  event loop that waits (`main_event_loop`, `main_event_loop_pid`) and at the tasks which that function waits
  for in turn (`task_context`). `SyncToAsync.thread_handler` puts back what was there before.
- `executors.current`, `thread_sensitive_context`, `deadlock_context`, `async_single_thread_context`: live in
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
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._workers import Worker
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.local import Local

if TYPE_CHECKING:
    from django_asyncbridge.bridge._contexts import AsyncSingleThreadContext, ThreadSensitiveContext

__all__ = (
    "Caller",
    "async_single_thread_context",
    "caller_of_thread",
    "calling_loop",
    "context_to_thread_executor",
    "deadlock_context",
    "executors",
    "loop_thread_executors",
    "registry_lock",
    "set_caller_of_thread",
    "shared_worker",
    "single_thread_context_executors",
    "thread_sensitive_context",
    "threadlocal",
    "waiting_executor",
)

threadlocal = threading.local()

executors = Local()

thread_sensitive_context: "contextvars.ContextVar[ThreadSensitiveContext]" = contextvars.ContextVar(
    "thread_sensitive_context"
)
deadlock_context: contextvars.ContextVar[Any] = contextvars.ContextVar("deadlock_context")
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

shared_worker = Worker("shared")


def waiting_executor() -> CurrentThreadExecutor | None:
    """Return the executor of the nearest sync caller up this call chain that waits in `async_to_sync`."""
    executor: CurrentThreadExecutor | None = getattr(executors, "current", None)
    return executor


def calling_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that waits for the sync function this thread is running, if any."""
    if getattr(threadlocal, "main_event_loop_pid", None) != _fork.pid():
        return None
    loop: asyncio.AbstractEventLoop | None = getattr(threadlocal, "main_event_loop", None)
    return loop


Caller = tuple[asyncio.AbstractEventLoop | None, int | None, Any]


def caller_of_thread() -> Caller:
    """Return which loop waits for this thread, in which process, and the tasks the thread waits for."""
    return (
        getattr(threadlocal, "main_event_loop", None),
        getattr(threadlocal, "main_event_loop_pid", None),
        getattr(threadlocal, "task_context", None),
    )


def set_caller_of_thread(caller: Caller) -> None:
    """Make another caller this thread's, or an earlier one again."""
    threadlocal.main_event_loop, threadlocal.main_event_loop_pid, threadlocal.task_context = caller


def _reset_after_fork() -> None:
    global registry_lock
    registry_lock = threading.RLock()
    loop_thread_executors.clear()
    context_to_thread_executor.clear()
    single_thread_context_executors.clear()


_fork.on_fork(_reset_after_fork)
