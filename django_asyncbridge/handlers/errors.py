"""What is done while an exception is being handled: hooks and error pages may ask `sys.exc_info` for it.

Which thread may touch what. Nothing is kept here.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from django.core.handlers.exception import response_for_exception
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_asyncbridge.handlers.sides import Side, Step

__all__ = ("ANSWER_EXCEPTION", "handling")


def _answer_exception(request: HttpRequest, error: Exception) -> HttpResponseBase:
    """Return Django's response to an exception: error views, signals and log included."""
    return _while_handling(response_for_exception, request, error)  # type: ignore[no-any-return]  # Django's is not typed


ANSWER_EXCEPTION = Step(_answer_exception, Side.THREAD)
"""Called with the request and an exception. Error views may do anything, so it needs the thread."""


def handling(step: Step) -> Step:
    """Return a ``process_exception`` hook as a step that runs while the exception is handled."""
    call = step.call
    if step.side is Side.LOOP:

        async def awaited(request: HttpRequest, error: Exception) -> Any:
            return await _await_while_handling(call, request, error)

        return Step(awaited, Side.LOOP)

    def called(request: HttpRequest, error: Exception) -> Any:
        return _while_handling(call, request, error)

    return Step(called, step.side, step.unless, step.keeps_tokens)


def _while_handling(call: Callable[..., Any], request: HttpRequest, error: Exception) -> Any:
    __traceback_hide__ = True
    traceback = error.__traceback__
    try:
        raise error
    except Exception:  # noqa: BLE001  # raised in the line above
        # Raising it here has added this frame, which is not where it comes from, and would keep `error` alive.
        error.__traceback__ = traceback
        return call(request, error)


async def _await_while_handling(
    call: Callable[..., Awaitable[Any]], request: HttpRequest, error: Exception
) -> Any:
    __traceback_hide__ = True
    traceback = error.__traceback__
    try:
        raise error
    except Exception:  # noqa: BLE001  # as above
        error.__traceback__ = traceback
        return await call(request, error)
