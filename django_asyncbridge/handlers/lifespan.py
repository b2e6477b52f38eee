"""`serve_lifespan`: ``ASYNCBRIDGE["LIFESPAN"]`` runs around serving, and what it yields is the state of every request.

Theory of operation. A server sends one scope of the type lifespan for each event loop that it serves on, before the first request and until after
the last. `serve_lifespan` enters the async context manager when the server starts, and leaves it when the server stops. What it yielded goes
where the server takes it from for each request, ``scope["state"]``; for a server that has no such place it is kept here, by event loop.

Hard rules. The context manager is entered and left in one task, so in one context. Once it is entered it is left, whatever the server
does: stop, cancel, or break. A cancellation goes on when it is left, also if the context manager has swallowed it.

Which thread may touch what. All of it runs on the event loop that is served. `_kept` is shared by the loops of all threads: each touches
only the entry of its own loop, and a dict does that at once.

Source: ASGI specification, "Lifespan Protocol" and "Lifespan State".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_asyncbridge import conf
from django_asyncbridge._servable import LIFESPAN, import_lifespan, manager_refusal

__all__ = ("serve_lifespan", "state_of")

logger = logging.getLogger("django_asyncbridge.handlers")

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]

# What was yielded on a loop whose server keeps no state.
_kept: dict[asyncio.AbstractEventLoop, dict[str, Any]] = {}


async def serve_lifespan(scope: Any, receive: _Receive, send: _Send) -> None:
    """Serve one lifespan scope: start, wait for the server to stop, and stop.

    Without ``LIFESPAN`` both are confirmed, and that is all. A failure is logged with its traceback, and the server
    gets the reason: one that fails to start does not serve.

    A cancelled call leaves the context manager with the cancellation, and ends cancelled.

    Args:
        scope: the scope. Its ``state``, if the server offers one, is filled.
        receive: gives the messages of the server: first that it starts, then that it stops.
        send: takes the answers.

    Raises:
        BaseException: whatever ended `receive` or `send` while the server ran.
    """
    loop = asyncio.get_running_loop()
    await receive()
    try:
        manager, state = await _start()
    except Exception as error:  # noqa: BLE001  # whatever it is, the server is told
        message = _report("failed to start", error)
        await send({"type": "lifespan.startup.failed", "message": message})
        return
    try:
        _keep(scope, state, loop)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    except BaseException as error:
        await _stop_early(manager, error)
        raise
    finally:
        _kept.pop(loop, None)
    await send(await _stop(manager))


def state_of(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state for one request or WebSocket: what ``LIFESPAN`` has yielded; empty if there was no lifespan.

    The dict belongs to the request: its server, or this, has copied it. What is in it is everybody's. To be called
    on the event loop that is served.
    """
    state: dict[str, Any] | None = scope.get("state")
    if state is None:
        return _kept_here() if _kept else {}
    return state


def _kept_here() -> dict[str, Any]:
    return dict(_kept.get(asyncio.get_running_loop(), ()))


def _keep(scope: Any, state: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> None:
    """Put the state where requests get it from."""
    place = scope.get("state")
    if place is None:
        place = _kept[loop] = {}
    place.update(state)


# --- The context manager ---------------------------------------------------------------


class _Nothing:
    """Stands for the context manager where there is none to enter."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def _start() -> tuple[Any, Mapping[str, Any]]:
    """Enter the context manager; return it, and what it yielded."""
    path = conf.current().lifespan
    manager = _Nothing() if path is None else _manager(path)
    yielded = await manager.__aenter__()
    problem = _problem_of(yielded)
    if problem is None:
        return manager, yielded or {}
    error = ImproperlyConfigured(
        f'{LIFESPAN} names "{path}", which yielded {problem}. '
        'Yield a dict, as "yield {"pool": pool}", or nothing.'
    )
    await _stop_early(manager, error)
    raise error


def _manager(path: str) -> Any:
    manager = import_lifespan(path)()
    refusal = manager_refusal(manager)
    if refusal is not None:
        raise ImproperlyConfigured(
            f'{LIFESPAN} names "{path}", which {refusal.problem}. {refusal.hint}'
        )
    return manager


def _problem_of(yielded: object) -> str | None:
    """Return what is wrong with what was yielded, as the end of a sentence; None if it can be a state."""
    if yielded is None:
        return None
    if not isinstance(yielded, Mapping):
        return f"{yielded!r}, which is no mapping"
    wrong = [key for key in yielded if not isinstance(key, str)]
    return f"a mapping with the key {wrong[0]!r}, which is no str" if wrong else None


async def _stop(manager: Any) -> dict[str, Any]:
    """Leave the context manager in order; return the answer for the server."""
    try:
        await manager.__aexit__(None, None, None)
    except Exception as error:  # noqa: BLE001  # whatever it is, the server is told
        message = _report("failed to stop", error)
        return {"type": "lifespan.shutdown.failed", "message": message}
    return {"type": "lifespan.shutdown.complete"}


async def _stop_early(manager: Any, reason: BaseException) -> None:
    """Leave the context manager because of an exception, which the caller is about to raise; log any other."""
    try:
        await manager.__aexit__(type(reason), reason, reason.__traceback__)
    except Exception as error:  # noqa: BLE001  # the first one counts, and nobody else would tell of this one
        if error is not reason:
            _report("failed", error)


def _report(what: str, error: Exception) -> str:
    """Log a failure with its traceback; return the message."""
    message = f"The lifespan {conf.usable().lifespan} {what}: {type(error).__name__}: {error}"
    logger.error(message, exc_info=error)
    return message
