"""Run a way: call what it yields, on the side each step belongs to, and cross only where the side changes.

On the event loop (`run`) coroutines are awaited, what never blocks is called, and at the first step that may block the whole way
goes to the request's thread. There (`_run_here`) everything that is no coroutine is called, whether it would have needed the thread or
not, until a coroutine comes: so a way crosses as often as it has to, never once per hook.
In sync code (`run_in_thread`, inside a sync middleware) it is the other way round: the calling thread goes on until a coroutine
comes, and the event loop then until a step may block.

Which thread may touch what. A generator is used by one thread at a time: while it is in a thread, the loop's side
waits for that call in `sync_to_async`, which returns only after the thread is done with it, also when cancelled; and the
other way round in `async_to_sync`.

Cancellation: a coroutine is cancelled where it waits. In a thread nothing can be cancelled; it goes on to the next coroutine or to the
end, as below a WSGI server, and the cancellation takes effect when the call is back. `bridge.sync.cancelled` tells sync code.
"""

from collections.abc import Callable
from typing import Any

from django_asyncbridge.bridge._mirror import run_here
from django_asyncbridge.bridge.sync import AsyncToSync, SyncToAsync
from django_asyncbridge.handlers.sides import Side, Step
from django_asyncbridge.handlers.way import Way

__all__ = ("run", "run_in_thread")

# A name of the module is found sooner than that of a class.
_LOOP, _ANY = Side.LOOP, Side.ANY

_Turn = tuple[Step, tuple[Any, ...]]


class _Ended:
    """The way has ended; holds its result."""

    def __init__(self, result: Any) -> None:
        self.result = result


async def run(way: Way) -> Any:
    """Run a way from the event loop, and return its result.

    Raises:
        django_asyncbridge.bridge.sync.WorkersBusy: when a step may block and no thread became free for the request in time.
        BaseException: what the way raises.
    """
    __traceback_hide__ = True
    turn: _Turn | _Ended | None = None
    try:
        turn = _begin(way)
        while not isinstance(turn, _Ended):
            turn = await _until_blocking(way, turn)
            if not isinstance(turn, _Ended):
                turn = await _until_coroutine_in_thread(way, turn)
        return turn.result
    finally:
        way.close()
        # An error's traceback leads to this frame, and the arguments of the step that answers it to the error.
        del turn


def run_in_thread(way: Way) -> Any:
    """Run a way from sync code, in the thread that calls, and return its result.

    Raises:
        BaseException: what the way raises.
    """
    __traceback_hide__ = True
    turn: _Turn | _Ended | None = None
    try:
        turn = _begin(way)
        while not isinstance(turn, _Ended):
            turn = _until_coroutine(way, turn)
            if not isinstance(turn, _Ended):
                turn = _until_blocking_on_loop(way, turn)
        return turn.result
    finally:
        way.close()
        # As above.
        del turn


async def _until_blocking(way: Way, turn: _Turn | _Ended) -> _Turn | _Ended:
    """Go on, on the event loop, until a step may block."""
    __traceback_hide__ = True
    while not isinstance(turn, _Ended):
        ((call, side, unless, keeps_tokens), args), result, error = turn, None, None
        try:
            if side is _LOOP:
                result = await call(*args)
            elif side is _ANY or (unless is not None and unless(*args)):
                result = run_here(call, *args) if keeps_tokens else call(*args)
            else:
                return turn
        except Exception as raised:  # noqa: BLE001  # the way decides what becomes of it
            error = raised
        turn = _go_on(way, result, error)
        # As above; and the rest is not needed meanwhile.
        del call, args, result, error
    return turn


def _until_coroutine(way: Way, turn: _Turn | _Ended) -> _Turn | _Ended:
    """Go on, in a thread, until there is a coroutine to await."""
    __traceback_hide__ = True
    while not isinstance(turn, _Ended):
        ((call, side, _, _), args), result, error = turn, None, None
        if side is _LOOP:
            return turn
        try:
            result = call(*args)
        except Exception as raised:  # noqa: BLE001  # as above
            error = raised
        turn = _go_on(way, result, error)
        del call, args, result, error
    return turn


class _ToThread(SyncToAsync[[Way, _Turn], _Turn | _Ended]):
    """A crossing that is known by the step it is made for."""

    def _called(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        return _call_of(args[1])


class _ToLoop(AsyncToSync[[Way, _Turn], _Turn | _Ended]):
    """The same in the other direction."""

    def _called(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        return _call_of(args[1])


def _call_of(turn: _Turn) -> Callable[..., Any]:
    (call, *_), _args = turn
    return call


_until_coroutine_in_thread = _ToThread(_until_coroutine)
_until_blocking_on_loop = _ToLoop(_until_blocking)


def _begin(way: Way) -> _Turn | _Ended:
    try:
        return next(way)
    except StopIteration as end:
        return _Ended(end.value)


def _go_on(way: Way, result: Any, error: Exception | None) -> _Turn | _Ended:
    """Tell a way how its step ended, and return its next.

    Not in an ``except`` block: what is raised later would get the step's exception as its context.
    """
    __traceback_hide__ = True
    try:
        return way.send(result) if error is None else way.throw(error)
    except StopIteration as end:
        return _Ended(end.value)
    finally:
        del error
