"""Handlers with one fault each: the comparison finds every one of them with a stack of its own table."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core import signals
from django.core.handlers.asgi import ASGIHandler

from tests.handlers.differential.outcomes import differing
from tests.handlers.differential.sides import both, theirs
from tests.handlers.differential.stacks import STACKS
from tests.handlers.differential.trace import colour


class _Djangos(ASGIHandler):
    """What type stubs do not know."""

    _view_middleware: list[Any]
    _template_response_middleware: list[Any]
    _exception_middleware: list[Any]


class Reversed(_Djangos):
    """Calls hooks around the view in the wrong order."""

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async)
        for hooks in (
            self._view_middleware,
            self._template_response_middleware,
            self._exception_middleware,
        ):
            hooks.reverse()


class Impatient(_Djangos):
    """Takes what is not true for no answer."""

    def process_exception_by_middleware(self, exception: Any, request: Any) -> Any:
        answers = (method(request, exception) for method in self._exception_middleware)
        return next((answer for answer in answers if answer is not None), None)


class Forgetful(ASGIHandler):
    """Loses the context of the request."""

    async def get_response_async(self, request: Any) -> Any:
        response = await super().get_response_async(request)
        colour.set("")
        return response


class Talkative(ASGIHandler):
    """Sends a signal twice."""

    async def get_response_async(self, request: Any) -> Any:
        await signals.request_started.asend(sender=type(self), scope=request.scope)
        return await super().get_response_async(request)


class Careless(ASGIHandler):
    """Does not close responses."""

    async def send_response(self, response: Any, send: Any) -> None:
        await super().send_response(response, send)
        response.close = lambda: None


class Lowering(ASGIHandler):
    """Sends header names in lower case."""

    async def send_response(self, response: Any, send: Any) -> None:
        async def lowered(message: Any) -> None:
            if "headers" in message:
                message["headers"] = [(name.lower(), value) for name, value in message["headers"]]
            await send(message)

        await super().send_response(response, lowered)


class Unhandled(ASGIHandler):
    """Calls exception hooks when the exception is not being handled any more."""

    def process_exception_by_middleware(self, exception: Any, request: Any) -> Any:
        found: list[Any] = []
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=lambda: found.append(
                context.run(
                    super(Unhandled, self).process_exception_by_middleware, exception, request
                )
            )
        )
        thread.start()
        thread.join()
        return found[0]


class Ending(ASGIHandler):
    """Never says that the answer ends."""

    async def send_response(self, response: Any, send: Any) -> None:
        async def endless(message: Any) -> None:
            await send({**message, "more_body": True} if "body" in message else message)

        await super().send_response(response, endless)


MUTANTS: dict[type[ASGIHandler], tuple[str, str]] = {
    Reversed: ("all_mixed", "GET async_template"),
    Impatient: ("process_exception__answers_falsy", "GET sync_raises_ValueError"),
    Forgetful: ("process_request__colours", "GET sync_template"),
    Talkative: ("all_nothing", "GET sync_ok"),
    Careless: ("all_nothing", "GET sync_raises_ValueError"),
    Lowering: ("all_nothing", "GET async_ok"),
    Unhandled: ("alone_mixin_qvtxr", "GET async_raises_ValueError"),
    Ending: ("all_nothing", "GET sync_ok"),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_handler_with_a_fault_differs_from_djangos(mutant: Callable[[], ASGIHandler]) -> None:
    name, question = MUTANTS[mutant]  # type: ignore[index]  # a class is called as well
    mutant.__name__ = "ASGIHandler"
    there, here = both(STACKS[name], [question], mutant)[question]
    assert differing(there, here)


def test_handler_of_djangos_does_not_differ_from_itself() -> None:
    for name in ("all_mixed", "resets_token"):
        pairs = both(STACKS[name], make=theirs)
        assert {one: differing(*pair) for one, pair in pairs.items() if differing(*pair)} == {}
