"""The end of a request: resources closed and ``request_finished`` sent, whatever happened before.

Closing may block: a file, a receiver of the signal. `blocks` decides from what is there to be closed, so that a request that
never was in a thread does not go there for its end.

Which thread may touch what. Everything is called in the task of the request.

Source: Django's documentation, ``request_finished`` and ``HttpResponse.close``; failure case C79.
"""

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Awaitable, Callable
from typing import IO, Any

from django.core import signals
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.db import close_old_connections, reset_queries
from django.dispatch import Signal
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.sync import sync_to_async
from django_asyncbridge.handlers.body import blocks_on_close
from django_asyncbridge.handlers.django_sides import condition_of
from django_asyncbridge.handlers.django_stores import closes_no_cache, has_nothing_open
from django_asyncbridge.handlers.sides import Side, Step, kept_step_of

__all__ = ("blocks", "close", "close_body", "needs_no_thread", "sending")

# What Django connects itself. The first two look after the connections of the thread they are called in: the event loop's has none, and
# those of a request's thread are looked after when it is lent and given back (`request_threads`).
_HOUSEKEEPING = (close_old_connections, reset_queries, close_caches, reset_urlconf)


def sending(signal: Signal, sender: object, **named: Any) -> Step | None:
    """Return the step that sends a signal of Django's to its receivers; None if none of them has anything to do.

    Called without arguments. It runs anywhere if all receivers do.
    """
    if signal is signals.request_started and _only_djangos_listen(signal):
        return None
    sync, asynchronous = _receivers(signal, sender)
    if not sync and not asynchronous:
        return None
    if asynchronous:
        return Step(functools.partial(signal.asend, sender, **named), Side.LOOP)
    send = functools.partial(signal.send, sender, **named)
    return Step(send, Side.ANY if _none_blocks(sync) else Side.THREAD)


async def close(
    response: HttpResponseBase | None, request: HttpRequest | None, sender: object
) -> None:
    """Close a response and its request, and have ``request_finished`` sent.

    Cancellation takes effect after that.

    Args:
        response: None if there never was one.
        request: None if there never was one.
        sender: of the signal, if there is no response to send it.
    """
    if response is None:
        await _close_request(request, sender)
        return
    closers = response._resource_closers  # type: ignore[attr-defined]  # where Django's own handlers add the request
    if request is not None and request.close not in closers:
        closers.append(request.close)
    if blocks(response, request, sender):
        await _to_its_end(_in_thread(response.close))
    elif _only_djangos_listen(signals.request_finished):
        _close_unheard(response, sender)
    else:
        response.close()


async def close_body(body: IO[bytes]) -> None:
    """Close the file that a request was read into, if the request has not; cancellation takes effect after that."""
    if blocks_on_close(body):
        await _to_its_end(sync_to_async(body.close, thread_sensitive=False))
    else:
        body.close()


async def _close_request(request: HttpRequest | None, sender: object) -> None:
    try:
        if request is not None and _closing_request_blocks(request):
            await _to_its_end(_in_thread(request.close))
        elif request is not None:
            request.close()
    finally:
        await _send_finished(sender)


async def _send_finished(sender: object) -> None:
    step = sending(signals.request_finished, sender)
    if step is not None and step.side is Side.ANY:
        step.call()
    elif step is not None:
        await _to_its_end(step.call if step.side is Side.LOOP else _in_thread(step.call))


def _close_unheard(response: HttpResponseBase, sender: object) -> None:
    """Do what ``response.close()`` does, calling the only receivers that have something to do here by their names.

    Sending a signal costs as much as a middleware.
    """
    for closer in response._resource_closers:  # type: ignore[attr-defined]  # as above
        with contextlib.suppress(Exception):
            closer()
    response._resource_closers.clear()  # type: ignore[attr-defined]  # as above
    response.closed = True
    close_caches()
    reset_urlconf(sender)


# The receivers of a signal that were found to be Django's own, all of them.
_djangos: dict[int, list[Any]] = {}


def _only_djangos_listen(signal: Signal) -> bool:
    """Tell whether a signal has no receivers but those that Django connects itself."""
    receivers: list[Any] = signal.receivers
    # Equal only if they are the same ones, so this is a comparison of a few addresses.
    if _djangos.get(id(signal)) == receivers:
        return True
    heard = [entry[1]() if isinstance(entry[1], weakref.ref) else entry[1] for entry in receivers]
    if all(receiver in _HOUSEKEEPING for receiver in heard):
        _djangos[id(signal)] = list(receivers)
        return True
    return False


def needs_no_thread(response: HttpResponseBase, request: HttpRequest) -> bool:
    """Tell, in any thread, whether the end of a request has nothing to do in the request's thread."""
    return _is_bare(response, request) and _only_djangos_listen(signals.request_finished)


def _is_bare(response: HttpResponseBase, request: HttpRequest | None) -> bool:
    """Tell whether closing a response runs nobody's code, and touches no file."""
    if type(response).close is not HttpResponseBase.close:
        return False
    closers = response._resource_closers  # type: ignore[attr-defined]  # as above
    if any(request is None or closer != request.close for closer in closers):
        return False
    return request is None or not _closing_request_blocks(request)


def blocks(response: HttpResponseBase, request: HttpRequest | None, sender: object) -> bool:
    """Tell, on the event loop, whether closing a response may block."""
    if not _is_bare(response, request):
        return True
    if _only_djangos_listen(signals.request_finished):
        return not (closes_no_cache() and has_nothing_open())
    sync, asynchronous = _receivers(signals.request_finished, sender)
    # Async ones are called by a sync function, which waits for them.
    return bool(asynchronous) or not _none_blocks(sync)


def _closing_request_blocks(request: HttpRequest) -> bool:
    # Uploaded files. The class of Django's request for ASGI has a stream.
    return hasattr(request, "_files") or blocks_on_close(request._stream)


def _receivers(signal: Signal, sender: object) -> tuple[list[Any], list[Any]]:
    if not signal.receivers:
        return [], []
    # What Django's own `send` calls, and what monitoring agents wrap.
    sync, asynchronous = signal._live_receivers(sender)
    return sync, asynchronous


def _none_blocks(receivers: list[Any]) -> bool:
    for receiver in receivers:
        step = kept_step_of(receiver, condition_of)
        if step.side is Side.THREAD and (step.unless is None or not step.unless()):
            return False
    return True


async def _to_its_end(call: Callable[[], Awaitable[object]]) -> None:
    """Await what `call` returns, also when cancelled; then end cancelled."""
    task = asyncio.ensure_future(_outcome(call))
    cancelled: asyncio.CancelledError | None = None
    failure: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        failure = task.result()
        if failure is not None:
            raise failure
        if cancelled is not None:
            raise cancelled
    finally:
        # Their tracebacks lead to this frame.
        del cancelled, failure, task


async def _outcome(call: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Return what `call` raises. A SystemExit that left this task would end the event loop, and not only the request."""
    try:
        await call()
    except BaseException as error:  # noqa: BLE001  # raised in the request's task
        return error
    return None


def _in_thread(call: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """Have `call` run in the request's thread; in another one if the request has none, and might have to wait for one."""
    context = _state.thread_sensitive_context.get(None)
    lease = None if context is None else _state.context_to_thread_executor.get(context)
    has_none = isinstance(lease, Lease) and not lease.has_worker()
    limited = _state.request_workers.maximum is not None
    return sync_to_async(call, thread_sensitive=not (has_none and limited))
