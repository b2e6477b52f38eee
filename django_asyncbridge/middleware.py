"""`ThreadSensitiveContextMiddleware`: a thread for each request, whatever serves it.

Which thread may touch what. The middleware is not changed after its creation; requests share nothing in it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    iscoroutinefunction,
    markcoroutinefunction,
)
from django_asyncbridge.handlers.busy import refusal

__all__ = ("ThreadSensitiveContextMiddleware",)

_Response = HttpResponseBase | Awaitable[HttpResponseBase]


class ThreadSensitiveContextMiddleware:
    """Give the thread-sensitive calls of each request a thread of their own, from the request threads.

    Put it first in ``MIDDLEWARE``. Below a handler that has made a context for the request, as this package's and
    Django's do, and below a sync caller that waits (``manage.py test``, ``AsyncClient``), it passes the request on. So it
    is of use with any other handler, and costs nothing with these. In a sync chain it does nothing.

    If no thread becomes free within ``REQUEST_THREADS["WAIT_SECONDS"]``, the answer is 503 with ``Retry-After``.

    A streaming response is sent after the middlewares: its content is not in the context.
    """

    sync_capable = True
    async_capable = True
    # handlers.plan looks for the name: below our own handler the rest is called as if this were not there.
    passes_through_our_handler = True

    def __init__(self, get_response: Callable[[HttpRequest], _Response]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> _Response:
        """Pass the request on, on the side of the next one."""
        if self._is_async and not _has_home():
            return self._in_context(request)
        return self.get_response(request)

    async def _in_context(self, request: HttpRequest) -> HttpResponseBase:
        context = ThreadSensitiveContext()
        context.holder = f"{request.method} {request.path}"
        async with context:
            refused = await refusal(context.holder)
            if refused is not None:
                return refused
            return await cast("Awaitable[HttpResponseBase]", self.get_response(request))


def _has_home() -> bool:
    """Tell whether thread-sensitive calls from here run in a thread of this call chain's own."""
    if _state.thread_sensitive_context.get(None) is not None:
        return True
    caller = _state.current_executor.get() or _state.loop_thread_executors.get(
        asyncio.get_running_loop()
    )
    return caller is not None and caller._nearest_open() is not None
