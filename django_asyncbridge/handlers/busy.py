"""Requests that no thread became free for: 503, and when to try again.

Which thread may touch what. Nothing here is kept; all of it runs in the task of the request.
"""

import logging
import math

from django.http import HttpResponse

from django_asyncbridge import conf
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import WorkersBusy, sync_to_async

__all__ = ("Refusal", "busy_response", "is_refusal", "refusal")

logger = logging.getLogger("django_asyncbridge.handlers")


class Refusal(HttpResponse):
    """The answer to a request that no thread became free for. Nothing more is done for that request."""


def is_refusal(error: BaseException | None) -> bool:
    """Tell whether an exception means that no thread became free for a request."""
    return isinstance(error, WorkersBusy) and error.pool == _state.request_workers.name


async def refusal(request: str) -> Refusal | None:
    """Take the thread of the current `ThreadSensitiveContext`, if threads are limited; return an answer if there is none.

    To be called before anything is done for the request: further in, the lack of a thread would be an error of the page.

    Args:
        request: its method and path, for the log.
    """
    if _state.request_workers.maximum is None:
        return None
    try:
        await _take_thread()
    except WorkersBusy as error:
        return busy_response(request, error)
    return None


@sync_to_async
def _take_thread() -> None: ...


def busy_response(request: str, error: BaseException) -> Refusal:
    """Return a 503 response with ``Retry-After``, and log who has the threads.

    Args:
        request: its method and path, for the log.
        error: why it cannot be served.
    """
    logger.warning(
        'Service Unavailable: %s: %s. ASYNCBRIDGE["REQUEST_THREADS"]["MAX"] is the maximum',
        request,
        error,
    )
    seconds = conf.current().request_threads.wait_seconds or 0
    text = "Service Unavailable"
    response = Refusal(
        text,
        status=503,
        content_type="text/plain",
        headers={
            "Content-Length": str(len(text)),
            "Retry-After": str(max(1, math.ceil(seconds))),
        },
    )
    # Django's name: its own line would need a thread, and says less.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
