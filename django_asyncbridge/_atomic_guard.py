"""`Guard`: keeps a connection for the tasks of the `aatomic` block that is open on it.

Theory of operation. A connection belongs to a thread, and the tasks that share a home thread share it. So while a block is
open, a guard sits on the connection and asks of whatever uses it whether it was started inside the innermost open block. A
context variable tells: it names the block, and tasks started in the block inherit it. The guard refuses queries (as
an execute wrapper), `on_commit`, `set_rollback` and `close`; and it keeps the refused from marking the transaction: Django's ``save``
and ``delete`` note on the connection that they have failed, which would roll back, without a word, the work of the task whose
block it is. To see that, the connection is given a subclass of its class for as long as it is guarded.

Which thread may touch what. A guard and its connection belong to the thread of the connection. `OpenBlock.left` only ever
turns true and may be read anywhere.

Source: Django's documentation on ``transaction.atomic`` and on database instrumentation.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextvars import ContextVar
from types import TracebackType
from typing import Any, cast

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = (
    "AtomicBlockError",
    "Guard",
    "OpenBlock",
    "current_block",
    "is_guarded",
    "open_blocks",
    "watch_orphans",
)


class AtomicBlockError(TransactionManagementError):
    """A connection was used, or an `aatomic` block left, in a way that would break a transaction."""

    # Where users find it.
    __module__ = "django_asyncbridge.db"


class OpenBlock:
    """What a guard knows of a block.

    Args:
        atomic: Django's block, that does the work.
        opened: who entered it and where, for messages.

    Attributes:
        outer: the open block that this one was entered in, of whichever connection.
        left: whether it is over, one way or other.
        broken: why the block is none any more although it has not been left; empty if all is well.
        home: the executor of the thread in which it was entered.
        guarded: the connection on which it is open.
    """

    left = False
    broken = ""
    home: Executor | None = None
    guarded: BaseDatabaseWrapper | None = None

    def __init__(self, atomic: transaction.Atomic, opened: str) -> None:
        self.atomic = atomic
        self.alias = atomic.using or DEFAULT_DB_ALIAS
        self.opened = opened
        self.outer = next(open_blocks(), None)

    def has_lost_its_home(self) -> bool:
        """Tell whether the thread in which it was entered has been given back, or waits no more; in any thread."""
        if isinstance(self.home, Lease):
            return self.home.is_over()
        return isinstance(self.home, CurrentThreadExecutor) and not self.home._open


current_block: ContextVar[OpenBlock | None] = ContextVar(
    "django_asyncbridge.atomic_block", default=None
)


def open_blocks() -> Iterator[OpenBlock]:
    """Yield the blocks, innermost first, that what runs here was started in and that have not been left."""
    block = current_block.get()
    while block is not None:
        if not block.left:
            yield block
        block = block.outer


# --- Blocks that have lost their thread ------------------------------------------


def watch_orphans() -> None:
    """Refuse queries of a block in whichever thread they come to run when that of the block has been given back.

    They would be outside of any transaction. Connections made from now on are watched; the app does this when Django starts.
    """
    connection_created.connect(_watch, dispatch_uid="django_asyncbridge.atomic_guard")


def _watch(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    # It is made again and again, with the same wrappers.
    if _refuse_orphan not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, _refuse_orphan)


def _refuse_orphan(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
) -> Any:
    if current_block.get() is not None:
        connection = context["connection"]
        for block in open_blocks():
            here = block.guarded is connection or block.alias != connection.alias
            if not here and block.has_lost_its_home():
                raise AtomicBlockError(
                    f"this aatomic() block has lost its transaction, because the request, context or async_to_sync() call "
                    f"whose thread it used has ended: {block.opened}; nothing of it was committed, and nothing more can be "
                    "done in it: wait for tasks that use the database before the request ends, or enter a "
                    "ThreadSensitiveContext in them"
                )
    return execute(sql, params, many, context)


# --- The guard -------------------------------------------------------------------


class _GuardedConnection(BaseDatabaseWrapper):
    """What a guarded connection's class has before its own."""

    @property
    def needs_rollback(self) -> bool:
        """As Django's; whoever is refused does not change it."""
        return cast("bool", self.__dict__["needs_rollback"])

    @needs_rollback.setter
    def needs_rollback(self, value: bool) -> None:
        guard = self.__dict__.get(_GUARD)
        # Outside of a transaction it is Django that has just connected again.
        if guard is None or not self.in_atomic_block or not guard.refusal():
            self.__dict__["needs_rollback"] = value

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        """As Django's, but not for whoever is refused."""
        # Before: the look may give the connection its own class back.
        own = super().on_commit
        self._check()
        own(func, robust)

    def set_rollback(self, rollback: bool) -> None:
        """As Django's, but not for whoever is refused."""
        # Before: the look may give the connection its own class back.
        own = super().set_rollback
        self._check()
        own(rollback)

    def close(self) -> None:
        """As Django's, but not for whoever is refused: the block would end without a word, and nothing committed."""
        # Before: the look may give the connection its own class back.
        own = super().close
        self._check()
        own()

    def close_if_unusable_or_obsolete(self) -> None:
        """Do nothing while a block is open: Django, at the end of any request, takes its transaction for a mistake."""
        guard = self.__dict__.get(_GUARD)
        own = super().close_if_unusable_or_obsolete
        if guard is None or not guard.is_open():
            own()

    def _check(self) -> None:
        # A copy has the class, but no guard.
        guard = self.__dict__.get(_GUARD)
        if guard is not None:
            guard.check()


_GUARD = "_asyncbridge_guard"


@functools.cache
def _guarded_class(cls: type) -> type[BaseDatabaseWrapper]:
    return type(cls.__name__, (_GuardedConnection, cls), {"__module__": cls.__module__})


class Guard:
    """Keeps a connection for those who were started inside its innermost open block.

    Attributes:
        blocks: the open blocks, outermost first.
        broken: blocks that are none any more but have not been left; what runs in them is refused.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.blocks: list[OpenBlock] = []
        self.broken: list[OpenBlock] = []
        self._class: type = type(connection)
        # While it leaves a block itself, wherever that happens.
        self._off = False

    @classmethod
    def of(cls, connection: BaseDatabaseWrapper) -> "Guard":
        """Return the connection's guard, or one to be."""
        return connection.__dict__.get(_GUARD) or cls(connection)

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        self.check()
        return execute(sql, params, many, context)

    def check(self) -> None:
        """Refuse what was not started inside the innermost block.

        Raises:
            AtomicBlockError: saying whose block it is, and what to do.
        """
        if refusal := self.refusal():
            raise AtomicBlockError(refusal)

    def is_open(self) -> bool:
        """Tell whether there is an open block."""
        self._notice_end()
        return bool(self.blocks)

    def refusal(self) -> str:
        """Return why what runs here must not use the connection; empty if it may."""
        self._notice_end()
        if self._off or not (self.blocks or self.broken):
            return ""
        inside = list(open_blocks())
        for block in inside:
            if block in self.broken:
                return block.broken
        if not self.blocks or self.blocks[-1] in inside:
            return ""
        return self._describe(self.blocks[-1], nested=any(one in inside for one in self.blocks))

    def _describe(self, block: OpenBlock, nested: bool) -> str:
        """Return what to tell whoever is refused because of `block`, which may be one nested in a block of its own."""
        whose = (
            f"the connection {self.connection.alias!r} of {threading.current_thread().name} is inside an aatomic() block "
            f"that has not been left: {block.opened}; what runs now was not started inside"
        )
        own = (
            "give each task a thread and a connection of its own, by a ThreadSensitiveContext entered in it (inside of another "
            "one, or below async_to_sync(), a ThreadSensitiveContext(executor=ThreadPoolExecutor(1)))"
        )
        if nested:
            return (
                f"{whose} that nested block and would become part of its savepoint: have the tasks started in a block use "
                f"the database one after the other, or {own}"
            )
        return f"{whose} and would become part of its transaction: wait until it is left, or {own}"

    def _notice_end(self) -> None:
        """Take note if the transaction was ended by somebody else, as whoever lends the thread does."""
        connection = self.connection
        if not self.blocks or (
            connection.in_atomic_block and self.blocks[0].atomic in connection.atomic_blocks
        ):
            return
        for block in self.blocks:
            block.broken = (
                f"the transaction of this aatomic() block was ended before the block was left: {block.opened}; nothing "
                "of it was committed, and nothing more can be done in it"
            )
        # Those left already were so in vain: this thread took no more work then.
        self.broken += [block for block in self.blocks if not block.left]
        self.blocks.clear()
        self._release()

    def push(self, block: OpenBlock) -> None:
        """Take note of a new innermost block."""
        # Those were left in another thread.
        self.broken = [one for one in self.broken if not one.left]
        if _GUARD not in self.connection.__dict__:
            self.connection.__dict__[_GUARD] = self
            self.connection.__class__ = _guarded_class(self._class)
            # First: it decides before others see the query, and `execute_wrapper` takes the last one away.
            self.connection.execute_wrappers.insert(0, self)
        self.blocks.append(block)
        block.guarded = self.connection

    def leave(
        self,
        block: OpenBlock,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave a block, and whatever is still open inside; that rolls back.

        Raises:
            AtomicBlockError: when it should have been committed and was not.
        """
        self._notice_end()
        refusal = None
        if block in self.broken:
            self.broken.remove(block)
            self._release()
            refusal = AtomicBlockError(block.broken)
        elif block is not self.blocks[-1]:
            refusal = self._break_inner(block)
            self._exit(block, AtomicBlockError, refusal, None)
        else:
            self._exit(block, kind, error, trace)
        try:
            if refusal is not None and kind is None:
                raise refusal
        finally:
            del error, trace, refusal

    def _break_inner(self, block: OpenBlock) -> AtomicBlockError:
        """Roll back what was entered after `block` and is open still, and return what to tell whoever leaves it."""
        inner = self.blocks[-1]
        refusal = AtomicBlockError(
            f"an aatomic() block ({block.opened}) was left before the one inside it ({inner.opened}), so both were "
            "rolled back; wait for the tasks started in a block, and leave inner blocks first"
        )
        while (inner := self.blocks[-1]) is not block:
            inner.broken = (
                f"this aatomic() block ({inner.opened}) was rolled back, because the block around it was left "
                f"first ({block.opened}); wait for the tasks started in a block before it ends"
            )
            self.broken.append(inner)
            self._exit(inner, AtomicBlockError, refusal, None)
        return refusal

    def _exit(
        self,
        block: OpenBlock,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.blocks.remove(block)
        # Before: what runs on commit runs outside of the transaction.
        self._release()
        self._off = True
        try:
            block.atomic.__exit__(kind, error, trace)
        finally:
            self._off = False
            del error, trace

    def _release(self) -> None:
        """Leave the connection as it was, once nobody has to be refused any more."""
        if self.blocks or self.broken:
            return
        self.connection.__class__ = self._class
        del self.connection.__dict__[_GUARD]
        # ValueError: somebody has emptied the list.
        with contextlib.suppress(ValueError):
            self.connection.execute_wrappers.remove(self)


def is_guarded(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a block is open on the connection, so that its transaction has not been forgotten; in its thread."""
    guard: Guard | None = connection.__dict__.get(_GUARD)
    return guard is not None and guard.is_open()
