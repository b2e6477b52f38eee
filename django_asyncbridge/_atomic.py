"""What `aatomic` is made of: blocks, and how they are entered and left whatever happens to the task.

Theory of operation. A `Block` is one entering of `aatomic`: it has a `transaction.atomic` of its own and enters and leaves that
in the home thread. The entering can be withdrawn by a cancellation as long as it has not begun; if it had begun, it is
undone. The leaving cannot be withdrawn: it is waited for, whatever happens to the task, and rolls back if the task
had been cancelled before it began. Who may use the connection meanwhile is `_atomic_guard`'s concern.

Which thread may touch what. ``_enter`` and ``_leave`` of a block belong to the home thread, the rest to its tasks; `left` and
`entered` only ever turn true and may be read anywhere.

Source: Django's documentation on ``transaction.atomic``; promises P5 and P7.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any

from django.db import transaction

from django_asyncbridge._atomic_guard import AtomicBlockError, Guard, OpenBlock
from django_asyncbridge.bridge._call import Call
from django_asyncbridge.bridge._children import Children
from django_asyncbridge.bridge.sync import SyncToAsync

__all__ = ("Block", "logger", "place_of_caller")

# The name of the public module.
logger = logging.getLogger("django_asyncbridge.db")


class _ShieldedCall(Call):
    """A call that nobody can withdraw: its cancellation takes effect when the function has ended."""

    _dropping = False

    def abandon(self) -> bool:
        """Refuse, unless the executor itself has given the call up."""
        return self._dropping and super().abandon()

    def drop(self, error: BaseException | None) -> None:
        """Fail the call, as `Call.drop` does."""
        self._dropping = True
        super().drop(error)


class _Entering(SyncToAsync[[], None]):
    """Enters a block in its home thread, and notes where that is."""

    def __init__(self, block: "Block") -> None:
        super().__init__(block._enter)
        self._block = block

    def _home(self, loop: asyncio.AbstractEventLoop) -> Any:
        home = super()._home(loop)
        self._block.home = home[0]
        return home


class _Leaving(SyncToAsync[[Any, Any, Any], None]):
    """Leaves a block, even if the task is cancelled meanwhile."""

    _call_type = _ShieldedCall

    def __init__(self, block: "Block", executor: Executor | None = None) -> None:
        super().__init__(block._leave, thread_sensitive=executor is None, executor=executor)
        self._block = block

    def thread_handler(
        self,
        loop: asyncio.AbstractEventLoop,
        exc_info: Any,
        task_context: Any,
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Note whether the task was cancelled before this began; from here on, nothing is told of it."""
        self._block.cancelled = task_context.cancelled
        try:
            return super().thread_handler(loop, exc_info, Children(), func, *args, **kwargs)
        finally:
            del exc_info, func, args, kwargs


class Block(OpenBlock):
    """One entering of `aatomic`, from `begin` to `end`.

    Args:
        using, savepoint, durable: those of ``transaction.atomic``.
        place: where it is entered, for messages.

    Attributes:
        entered: whether there is something to leave.
        cancelled: whether its task had been cancelled before the leaving began.
    """

    entered = cancelled = False
    _unwanted = False
    _guard: Guard | None = None

    def __init__(self, using: str | None, savepoint: bool, durable: bool, place: str) -> None:
        task = asyncio.current_task()
        opener = "a coroutine" if task is None else f"task {task.get_name()!r}"
        super().__init__(transaction.atomic(using, savepoint, durable), f"{opener} entered {place}")
        self.using = using

    async def begin(self) -> None:
        """Begin the transaction, or set the savepoint; cancelled, have neither."""
        try:
            await _Entering(self)()
        except GeneratorExit:
            # The coroutine is closed: nothing can be awaited any more.
            self._give_up()
            raise
        except BaseException as error:
            if self.entered:
                try:
                    await self.end(type(error), error, error.__traceback__)
                except Exception:
                    logger.warning(
                        "rolling back failed after a cancellation of aatomic()", exc_info=True
                    )
            raise

    def _give_up(self) -> None:
        """Have the block left as soon as it is entered, or now. `_leave` does it once, so both may see to it."""
        self._unwanted = True
        if self.entered and self.home is not None:
            # RuntimeError: the thread takes no more work; it has no transaction any more either.
            with contextlib.suppress(RuntimeError):
                self.home.submit(self._leave, GeneratorExit, None, None)

    async def end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit or roll back; a cancellation meanwhile is raised when that is done.

        Raises:
            AtomicBlockError: when it could not be committed, because the block is not left as it should be.
        """
        try:
            await _Leaving(self)(kind, error, trace)
        except GeneratorExit:
            # Nothing can be awaited any more; the call is not withdrawn.
            raise
        except BaseException:
            await self._leave_where_entered()
            raise
        else:
            if await self._leave_where_entered() and kind is None:
                raise AtomicBlockError(
                    f"aatomic() was left in another thread than that in which {self.opened}, so it was rolled back; leave "
                    "it inside the same ThreadSensitiveContext and the same async_to_sync() call in which it was entered"
                )
        finally:
            self.home = None
            del error, trace

    async def _leave_where_entered(self) -> bool:
        """Roll back in the thread of the entering unless the block has been left; tell whether that was so."""
        if self.left:
            return False
        # RuntimeError: that thread takes no more work. Whoever had lent it has ended the transaction.
        with contextlib.suppress(RuntimeError):
            await _Leaving(self, self.home)(AtomicBlockError, None, None)
        self.left = True
        return True

    # --- In the home thread -----------------------------------------------------------

    def _enter(self) -> None:
        connection = transaction.get_connection(self.using)
        guard = Guard.of(connection)
        guard.check()
        self.atomic.__enter__()
        self._guard = guard
        guard.push(self)
        self.entered = True
        if self._unwanted:
            self._leave(GeneratorExit, None, None)

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        guard = self._guard
        if guard is None or guard.connection is not transaction.get_connection(self.using):
            # It has been left, or this is another thread.
            return
        self.left, self._guard = True, None
        if kind is None and self.cancelled:
            kind, error = asyncio.CancelledError, asyncio.CancelledError()
        try:
            guard.leave(self, kind, error, trace)
        finally:
            # The traceback of an error keeps this frame.
            del error, trace


def place_of_caller(depth: int) -> str:
    """Return the line that called, `depth` frames up, for messages."""
    frame = sys._getframe(depth + 1)
    return f"aatomic() at {frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"
