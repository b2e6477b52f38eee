"""`Exchange`: one request from its scope to the last byte of its response, and the clean-up after it.

What Django's handler does, in its order: the signal ``request_started``, the request object, the middlewares and the view, a log line for
errors, the response to the client, the end of both. Up to the response it is one way (`way.Way`), so that a request which
needs its thread goes there once.

Which thread may touch what. An exchange belongs to the task of its request. Its way may be run by the request's thread, while the
task waits for that.

Source: Django's documentation, "Request and response objects", "Signals"; ASGI specification, "HTTP".
"""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import IO, TYPE_CHECKING, Any

from django.conf import settings
from django.core import signals
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import get_script_prefix
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix, set_urlconf
from django.utils.log import log_response

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, WorkersBusy
from django_asyncbridge.handlers.answers import send_response
from django_asyncbridge.handlers.busy import Refusal, busy_response, refusal
from django_asyncbridge.handlers.closing import close, close_body, needs_no_thread, sending
from django_asyncbridge.handlers.departure import Departure
from django_asyncbridge.handlers.lifespan import state_of
from django_asyncbridge.handlers.runner import run
from django_asyncbridge.handlers.sides import Side, Step
from django_asyncbridge.handlers.way import (
    RequestWay,
    Way,
    forget_response,
    remember_response,
    replace_response,
    response_of,
)

if TYPE_CHECKING:
    from django_asyncbridge.handlers.asgi import ASGIHandler

__all__ = ("Exchange", "answer", "name_of")

logger = logging.getLogger("django_asyncbridge.handlers")
_django = logging.getLogger("django.request")

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]


def name_of(scope: Any) -> str:
    """Return the method and path of a request, for messages."""
    return f"{scope['method']} {scope['path']}"


class Exchange:
    """One request and its response; to be made on the event loop.

    Args:
        handler: whose request it is.
        scope: of the request.
        body: what the client sent, from its beginning. It is closed at the end.
        context: that the request's thread belongs to.
    """

    def __init__(
        self, handler: "ASGIHandler", scope: Any, body: IO[bytes], context: ThreadSensitiveContext
    ) -> None:
        self._handler = handler
        self._look_after = Step(functools.partial(_look_after_thread, context), Side.ANY)
        self._scope = scope
        # Here, and not where it is used: that may be in a thread.
        self._state = state_of(scope)
        self._body = body
        self._request: HttpRequest | None = None
        self._response: HttpResponseBase | None = None

    async def serve(self, receive: _Receive, send: _Send) -> None:
        """Answer the request, unless its client leaves, and clean up.

        Raises:
            BaseException: what the content of a streaming response raises; what Django's handler raises.
        """
        what = name_of(self._scope)
        try:
            async with Departure(receive, what):
                await self._answer(what, send)
        finally:
            await self._close()

    async def _answer(self, what: str, send: _Send) -> None:
        try:
            self._response = response = await run(self._begin())
        except WorkersBusy as error:
            # Of the crossing: one that the view raises has become a response.
            self._response = response = self._refused(busy_response(what, error))
        if response.streaming and not getattr(response, "is_async", True):
            # While nothing has been sent, it can still be refused.
            refused = await refusal(what)
            if refused is not None:
                self._response = response = self._refused(refused)
        try:
            await send_response(response, _aborting(send), self._scope)
        except RequestAborted:
            logger.debug("the client has left: %s", what)

    def _refused(self, response: Refusal) -> Refusal:
        response._handler_class = type(self._handler)  # type: ignore[attr-defined]  # Django's own name
        if self._request is not None:
            replace_response(self._request, response)
        return response

    def _begin(self) -> Way:
        """Announce the request, make it, and lead it through the middlewares."""
        handler, scope = self._handler, self._scope
        set_script_prefix(get_script_prefix(scope))
        started = sending(signals.request_started, type(handler), scope=scope)
        if started is not None:
            yield started, ()
        request, refused = handler.create_request(scope, self._body)
        if request is None:
            return refused
        self._request = request
        request.state = self._state  # type: ignore[attr-defined]  # ours
        response = yield from answer(handler, request)
        if not response.streaming and needs_no_thread(response, request):
            yield self._look_after, ()
        return response

    async def _close(self) -> None:
        request, sender = self._request, type(self._handler)
        response = self._response
        if response is None and request is not None:
            response = response_of(request)
            if response is not None:
                response._handler_class = sender  # type: ignore[attr-defined]  # Django's own name
        try:
            await close(response, request, sender)
        finally:
            if request is not None:
                forget_response(request)
            await close_body(self._body)


def answer(handler: "ASGIHandler", request: HttpRequest) -> Way:
    """Lead a request through the middlewares, and log the answer if it is an error."""
    set_urlconf(settings.ROOT_URLCONF)
    response = yield from RequestWay(handler, request).through(handler.plan)
    response._resource_closers.append(request.close)
    response._handler_class = type(handler)
    remember_response(request, response)
    if response.status_code >= 400:
        yield _logging(request, response), ()
    return response


def _look_after_thread(context: ThreadSensitiveContext) -> None:
    """If the request is in its thread here, look after that at once: the thread need not be woken for it at the end."""
    lease = _state.context_to_thread_executor.get(context)
    if isinstance(lease, Lease):
        lease.look_after_now()


def _logging(request: HttpRequest, response: HttpResponseBase) -> Step:
    """Return the step that logs an error status; log handlers may send mail."""
    level = logging.ERROR if response.status_code >= 500 else logging.WARNING
    log = functools.partial(
        log_response,
        "%s: %s",
        response.reason_phrase,
        request.path,
        response=response,  # type: ignore[arg-type]  # of any kind
        request=request,
    )

    def is_silent() -> bool:
        return getattr(response, "_has_been_logged", False) or not _django.isEnabledFor(level)

    return Step(log, Side.THREAD, is_silent)


def _aborting(send: _Send) -> _Send:
    """Return `send`, raising RequestAborted where it says that the client has left."""

    async def sending(message: Any) -> None:
        try:
            await send(message)
        except OSError as error:
            raise RequestAborted from error

    return sending
