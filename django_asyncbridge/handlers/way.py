"""`RequestWay`: in which order things are called for a request, and what follows from how they end.

The decisions are generators. Each yields what is to be called next, as a step and its arguments, and is sent what that returned, or
thrown what it raised. So they decide without knowing where anything runs: `runner` does the calling, on the event loop or
in a thread, and takes the generator with it. What they decide is what Django's handler does:

- A hook's exception becomes a response at its own layer, and the layers outside of it still see that response.
- A hook that answers turns the request around: its own layer and those outside see the answer.
- An exception of the view is offered to the exception hooks, innermost first; of the answer to an exception
  nobody is asked any more.
- Where no thread became free for the request, the answer is 503 at once: nothing that could need one is called any more.
- What is not an `Exception`, as a cancellation, ends the way at once.

Which thread may touch what. A way is run by one thread at a time: by the one that the request is in. `runner` says how it moves.

Source: Django's documentation, "Middleware", "Request and response processing".
"""

import asyncio
import functools
from collections.abc import Generator, Iterable
from typing import Any, Protocol

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_asyncbridge.handlers.busy import Refusal, busy_response, is_refusal
from django_asyncbridge.handlers.errors import ANSWER_EXCEPTION
from django_asyncbridge.handlers.plan import Hooks, Layer, Plan
from django_asyncbridge.handlers.sides import Step, kept_step_of, step_of

__all__ = (
    "RequestWay",
    "Site",
    "Way",
    "forget_response",
    "refuse",
    "remember_response",
    "replace_response",
    "response_of",
)

Way = Generator[tuple[Step, tuple[Any, ...]], Any, Any]

_RESPONSE = "_asyncbridge_response"


class Site(Protocol):
    """What the way needs of Django's handler."""

    hooks: Hooks

    def resolve_request(self, request: HttpRequest) -> Iterable[Any]:
        """Return the view of a request, and the arguments for it from the URL."""

    def make_view_atomic(self, view: Any) -> Any:
        """Return the view in the transactions that it wants."""

    def check_response(self, response: Any, callback: Any, name: str | None = None) -> None:
        """Raise an error if what a view or hook returned is no response."""


class RequestWay:
    """The way of one request through one plan.

    Args:
        site: the handler.
        request: what goes the way.
    """

    __slots__ = ("_request", "_site")

    def __init__(self, site: Site, request: HttpRequest) -> None:
        self._site = site
        self._request = request

    def through(self, plan: Plan) -> Way:
        """Go inwards through the layers of `plan` to its core, and out again.

        Returns:
            the response; or what the outermost ``process_response`` returned instead.

        Raises:
            Exception: what the answer to an exception raised, layer by layer (``DEBUG_PROPAGATE_EXCEPTIONS``).
        """
        __traceback_hide__ = True
        depth, response, error = yield from self._inwards(plan)
        if is_refusal(error):
            response = refuse(self._request, error)
            error = None
        if isinstance(response, Refusal):
            # The other layers may need the thread as well, and would wait for it again.
            return response
        outwards = self._outwards(plan.layers, depth, response, error)
        # Its traceback may lead to this frame.
        del error
        return (yield from outwards)

    def _inwards(self, plan: Plan) -> Way:
        """Return how many layers were entered before there was a response or an exception, and which."""
        __traceback_hide__ = True
        depth = 0
        try:
            for layer in plan.layers:
                if layer.process_request is not None:
                    response = yield layer.process_request, (self._request,)
                    if response:
                        return depth, response, None
                depth += 1
            if plan.core is None:
                response = yield from self._view()
            else:
                response = yield plan.core, (self._request,)
        except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a response
            return depth, None, error
        return depth, response, None

    def _outwards(
        self, layers: tuple[Layer, ...], depth: int, response: Any, error: Exception | None
    ) -> Way:
        """Go back through the layers, from the one at `depth`; one deeper than all of them is the core."""
        __traceback_hide__ = True
        for level in range(depth, -1, -1):
            hook = layers[level].process_response if level < len(layers) else None
            if error is None and hook is not None:
                try:
                    response = yield hook, (self._request, response)
                except Exception as raised:  # noqa: BLE001  # as above
                    error = raised
            if error is not None:
                failure, error = error, None
                try:
                    response = yield ANSWER_EXCEPTION, (self._request, failure)
                except Exception as raised:  # noqa: BLE001  # the next layer answers that
                    error = raised
                # As above.
                del failure
        if error is None:
            return response
        try:
            raise error
        finally:
            del error

    def _view(self) -> Way:
        __traceback_hide__ = True
        site, request = self._site, self._request
        view, args, kwargs = site.resolve_request(request)
        response: Any = None
        for hook in site.hooks.view:
            response = yield hook, (request, view, args, kwargs)
            if response:
                break
        if response is None:
            response = yield from self._answer_of(
                _bound(kept_step_of(site.make_view_atomic(view)), kwargs), (request, *args)
            )
        site.check_response(response, view)
        if callable(getattr(response, "render", None)):
            response = yield from self._rendered(response, view)
        return response

    def _rendered(self, response: Any, view: Any) -> Way:
        __traceback_hide__ = True
        site, request = self._site, self._request
        for hook in site.hooks.template_response:
            response = yield hook, (request, response)
            owner = type(hook.call.__self__).__name__  # type: ignore[attr-defined]  # a bound method
            site.check_response(response, hook.call, name=f"{owner}.process_template_response")
        try:
            step = step_of(response.render)
        except Exception as error:
            # Of a hook that returned what cannot be rendered.
            response = yield from self._answer_by_hooks(error)
            if response is None:
                raise
        else:
            response = yield from self._answer_of(step, ())
        if asyncio.iscoroutine(response):
            site.check_response(response, view)
        return response

    def _answer_of(self, step: Step, args: tuple[Any, ...]) -> Way:
        """Return what a step returns, or else what an exception hook makes of its exception."""
        __traceback_hide__ = True
        try:
            response = yield step, args
        except Exception as error:
            # Without a thread nobody can be asked.
            response = None if is_refusal(error) else (yield from self._answer_by_hooks(error))
            if response is None:
                raise
        remember_response(self._request, response)
        return response

    def _answer_by_hooks(self, error: Exception) -> Way:
        for hook in self._site.hooks.exception:
            response = yield hook, (self._request, error)
            if response:
                return response
        return None


def response_of(request: HttpRequest) -> HttpResponseBase | None:
    """Return the response that was made for a request, if one was: a cancellation may keep it from coming back."""
    return getattr(request, _RESPONSE, None)


def forget_response(request: HttpRequest) -> None:
    """Let go of the response of a request, which has been closed: it may refer to the request."""
    vars(request).pop(_RESPONSE, None)


def refuse(request: HttpRequest, error: BaseException) -> Refusal:
    """Return the answer to a request that no thread became free for, in the place of any that was made."""
    response = busy_response(f"{request.method} {request.path}", error)
    replace_response(request, response)
    return response


def replace_response(request: HttpRequest, response: HttpResponseBase) -> None:
    """Have a response close what the one before it would have closed."""
    before = response_of(request)
    if before is not None and before is not response:
        closers = response._resource_closers  # type: ignore[attr-defined]  # Django's own name
        closers += before._resource_closers  # type: ignore[attr-defined]  # as above
        before._resource_closers.clear()  # type: ignore[attr-defined]  # as above
    remember_response(request, response)


def remember_response(request: HttpRequest, response: Any) -> None:
    """Keep the response of a request for `response_of`; what is no response is not kept."""
    if isinstance(response, HttpResponseBase):
        setattr(request, _RESPONSE, response)


def _bound(step: Step, kwargs: dict[str, Any]) -> Step:
    if not kwargs:
        return step
    return step._replace(call=functools.partial(step.call, **kwargs))
