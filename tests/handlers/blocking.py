"""A detector of blocking calls: `no_blocking` makes them raise in the thread that is in it.

Python's audit events tell of files, sockets, processes and imports; the rest is guarded by replacing it for as long as the
block lasts: `os.stat`, which has no event, `time.sleep`, which has none on Python 3.11, Django's database connections, and its caches in memory, which stand for caches on a server.
What a detector raises may be caught on its way, so the end of the block raises it again. Locks and long computing are not seen.

Which thread may touch what. Only the thread that is in the block is looked at; others go on as always.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db.backends.base.base import BaseDatabaseWrapper

EVENTS = frozenset(
    {
        *("import", "open", "glob.glob", "sqlite3.connect", "subprocess.Popen"),
        *(f"os.{name}" for name in ("chmod", "link", "listdir", "mkdir", "remove", "rename")),
        *(f"os.{name}" for name in ("rmdir", "scandir", "symlink", "system", "truncate", "utime")),
    }
)
PREFIXES = ("fcntl.", "shutil.", "socket.", "tempfile.")

CACHE_CALLS = ("add", "clear", "delete", "get", "has_key", "set", "touch")
CONNECTION_CALLS = ("close", "commit", "connect", "cursor", "ensure_connection", "rollback")


class BlockingCallError(AssertionError):
    """Something was called that may block."""


class _Watch(threading.local):
    """What was seen in this thread, None while nobody looks."""

    seen: list[str] | None = None


_watch = _Watch()


def note(what: str) -> None:
    """Raise if this thread is in `no_blocking`.

    Raises:
        BlockingCallError: naming what was called.
    """
    if _watch.seen is not None:
        _watch.seen.append(what)
        raise BlockingCallError(what)


@contextlib.contextmanager
def no_blocking() -> Iterator[None]:
    """Make blocking calls raise in this thread.

    Raises:
        BlockingCallError: at the call, and at the end of the block if that was caught.
    """
    _install()
    with contextlib.ExitStack() as guards:
        for owner, names in (
            (os, ("stat", "lstat")),
            (time, ("sleep",)),
            (BaseDatabaseWrapper, CONNECTION_CALLS),
            (LocMemCache, CACHE_CALLS),
            (DummyCache, CACHE_CALLS),
        ):
            for name in names:
                guards.enter_context(_guarded(owner, name))
        seen = _watch.seen = []
        try:
            yield
        finally:
            _watch.seen = None
    if seen:
        raise BlockingCallError(", ".join(seen))


@functools.cache
def _install() -> None:
    """Hear the audit events; once, for they cannot be left."""
    sys.addaudithook(_hear)


def _hear(event: str, _args: Any) -> None:
    if _watch.seen is not None and (event in EVENTS or event.startswith(PREFIXES)):
        note(event)


# So that a measurement of coverage follows it.
vars(_hear)["__cantrace__"] = True


def _guarded(owner: Any, name: str) -> contextlib.AbstractContextManager[Any]:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def guard(*args: Any, **kwargs: Any) -> Any:
        note(f"{owner.__name__}.{name}")
        return original(*args, **kwargs)

    return mock.patch.object(owner, name, guard)
