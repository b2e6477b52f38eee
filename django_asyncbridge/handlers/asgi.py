"""`ASGIHandler`: Django's ASGI handler, whose requests cross between event loop and thread only when they must.

Django loads the middlewares, by its own rules and with its own messages; each time it would adapt one to the next, it gets
a function of ours instead, which runs the plan of what is inside (`plan`). A request goes the way that its plan says
(`way`), in an `exchange.Exchange` that knows its beginning and its end.

Which thread may touch what. One handler serves the requests of all event loops; it is not changed after its creation.

Source: ASGI specification; Django's documentation, "How to deploy with ASGI".
"""

from collections.abc import Awaitable, Callable
from typing import Any

from django.core.exceptions import RequestAborted
from django.core.handlers import asgi
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_asyncbridge import conf
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, WorkersBusy
from django_asyncbridge.handlers.body import read_body
from django_asyncbridge.handlers.errors import handling
from django_asyncbridge.handlers.exchange import Exchange, name_of
from django_asyncbridge.handlers.lifespan import serve_lifespan
from django_asyncbridge.handlers.plan import (
    Hooks,
    Plan,
    around,
    enclosing,
    is_plain,
    is_transparent,
    step_of_hook,
)
from django_asyncbridge.handlers.runner import run, run_in_thread
from django_asyncbridge.handlers.way import RequestWay, refuse
from django_asyncbridge.handlers.websockets import serve_websocket

__all__ = ("ASGIHandler",)

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]


class ASGIHandler(asgi.ASGIHandler):
    """Serve a project: HTTP with its middlewares and views, WebSockets and the lifespan as the settings say.

    Attributes:
        plan: the way through all middlewares.
        hooks: those around the view.

    Raises:
        django.core.exceptions.ImproperlyConfigured: naming everything that is wrong with the setting ``ASYNCBRIDGE``.
    """

    # Django's, which the type stubs leave out.
    _middleware_chain: Any
    _view_middleware: list[Any]
    _template_response_middleware: list[Any]
    _exception_middleware: list[Any]
    _get_response_async: Any

    def __init__(self) -> None:
        conf.current()
        # Of the functions that middlewares get as get_response: what they run.
        self._plans: dict[object, Plan] = {}
        self.plan = Plan()
        self.hooks = Hooks()
        super().__init__()

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Serve one scope.

        Raises:
            ValueError: for a scope of another type than ``http``, ``websocket`` and ``lifespan``.
        """
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            await serve_websocket(scope, receive, send)
        elif kind == "lifespan":
            await serve_lifespan(scope, receive, send)
        else:
            raise ValueError(
                f"the scope type {kind!r} is not served; there are http, websocket and lifespan"
            )

    async def _serve(self, scope: Any, receive: _Receive, send: _Send) -> None:
        # Before there is a thread for the request: an upload may take its time.
        try:
            body = await read_body(receive)
        except RequestAborted:
            return
        context = ThreadSensitiveContext()
        context.holder = name_of(scope)
        async with context:
            await Exchange(self, scope, body, context).serve(receive, send)

    # --- Loading -----------------------------------------------------------------

    def load_middleware(self, is_async: bool = False) -> None:
        """Have Django load ``settings.MIDDLEWARE``, and make the plan of it.

        Raises:
            Exception: what Django raises for middlewares that cannot be used.
        """
        super().load_middleware(is_async)
        # The last that was adapted is the outermost.
        self.plan = self._plans[self._middleware_chain]
        self.hooks = Hooks(
            tuple(map(step_of_hook, self._view_middleware)),
            tuple(map(step_of_hook, self._template_response_middleware)),
            tuple(handling(step_of_hook(hook)) for hook in self._exception_middleware),
        )

    def adapt_method_mode(
        self,
        is_async: bool,
        method: Any,
        method_is_async: bool | None = None,
        debug: bool = False,
        name: str | None = None,
    ) -> Any:
        """Return hooks as they are, and for the rest of the chain a function that runs its plan.

        Args:
            is_async: whether the function has to be a coroutine function.
            method: a hook, or one of the chain: a middleware, or the view, in Django's wrapper for exceptions.
            method_is_async: whether that is to be awaited; None for hooks.
            debug: whether to log what is adapted.
            name: the middleware's, for the log.
        """
        if method_is_async is None:
            return method
        # For what it logs.
        super().adapt_method_mode(is_async, method, method_is_async, debug, name)
        plan = self._plan_of(getattr(method, "__wrapped__", method), method_is_async)
        rest = self._awaited_rest(plan) if is_async else self._called_rest(plan)
        self._plans[rest] = plan
        return rest

    def _plan_of(self, inner: Any, is_async: bool) -> Plan:
        if inner == self._get_response_async:
            return Plan()
        inside = self._plans.get(getattr(inner, "get_response", None))
        if inside is not None and is_transparent(inner):
            return inside
        if inside is not None and is_plain(inner):
            return enclosing(inner, inside)
        return around(inner, is_async)

    def _awaited_rest(self, plan: Plan) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
        async def get_response(request: HttpRequest) -> Any:
            try:
                return await run(RequestWay(self, request).through(plan))
            except WorkersBusy as error:
                # To a middleware, whose own code is to run to its end. One that the view raises has become a response.
                return refuse(request, error)

        return get_response

    def _called_rest(self, plan: Plan) -> Callable[[HttpRequest], HttpResponseBase]:
        def get_response(request: HttpRequest) -> Any:
            return run_in_thread(RequestWay(self, request).through(plan))

        return get_response
