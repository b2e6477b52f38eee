"""Which applications are taken for ASGI 2, and that whatever they are can be called the ASGI 3 way."""

import asyncio
import functools
import gc
import inspect
import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from django_asyncbridge.bridge.compatibility import (
    double_to_single_callable,
    guarantee_single_callable,
    is_double_callable,
)
from django_asyncbridge.bridge.sync import markcoroutinefunction

ARGUMENTS = ("the scope", "the receive", "the send")
App = Callable[..., Any]

# --- Applications of every kind; each returns what it was called with --------


async def single_function(scope: Any, receive: Any, send: Any) -> Any:
    return scope, receive, send


def double_function(scope: Any) -> Any:
    async def instance(receive: Any, send: Any) -> Any:
        return scope, receive, send

    return instance


class SingleObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send

    async def method(self, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send

    def plain_method(self, scope: Any, receive: Any, send: Any) -> Any:
        return single_function(scope, receive, send)

    @classmethod
    def as_asgi(cls, **options: Any) -> App:
        """As Channels makes an application of a consumer class: an ASGI 3 function that shows the class."""

        async def application(scope: Any, receive: Any, send: Any) -> Any:
            return await cls(**options)(scope, receive, send)

        return functools.update_wrapper(application, cls, updated=())


class SingleObjectPlainCall:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return single_function(scope, receive, send)


class SingleEndpoint:
    """As Starlette's endpoints: the instance of each request is awaited."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.arguments = scope, receive, send

    def __await__(self) -> Generator[Any, None, Any]:
        return single_function(*self.arguments).__await__()


class DoubleClass:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> Any:
        return self.scope, receive, send


class DoubleClassWithOptions(DoubleClass):
    def __init__(self, scope: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(scope)


class DoubleObject:
    def __call__(self, scope: Any) -> Any:
        return DoubleClass(scope)


class Hinted:
    """Called by arguments of any number, with a hint about itself."""

    def __init__(self, application: App, **hint: bool) -> None:
        self.application = application
        vars(self).update(hint)

    def __call__(self, *arguments: Any) -> Any:
        return self.application(*arguments)


class NoSignature:
    """As an extension function whose signature cannot be read."""

    __signature__ = "not a signature"

    def __init__(self, application: App) -> None:
        self.application = application

    def __call__(self, *arguments: Any) -> Any:
        return self.application(*arguments)


def traced(application: App) -> App:
    """As a monitoring agent wraps: a plain function that returns whatever the application returns."""

    @functools.wraps(application)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return application(*arguments, **options)

    return wrapper


def traced_anonymously(application: App) -> App:
    def wrapper(*arguments: Any) -> Any:
        return application(*arguments)

    return wrapper


def downgraded(application: App) -> App:
    """An ASGI 3 application made an ASGI 2 one by a decorator, which keeps the old signature to be seen."""

    @functools.wraps(application)
    def wrapper(scope: Any) -> Any:
        return functools.partial(application, scope)

    return wrapper


def either(scope: Any, receive: Any = None, send: Any = None) -> Any:
    """Can be called in both styles, as some applications between ASGI 2 and 3."""
    if receive is None:
        return functools.partial(single_function, scope)
    return single_function(scope, receive, send)


def with_options(options: Any, scope: Any, receive: Any, send: Any) -> Any:
    return single_function(scope, receive, send)


async def single_function_with_options(options: Any, scope: Any, receive: Any, send: Any) -> Any:
    return scope, receive, send


def hinted_partial() -> App:
    application = functools.partial(traced_anonymously(double_function))
    vars(application)["_asgi_double_callable"] = True
    return application


def wrapping_itself() -> App:
    application = traced_anonymously(single_function)
    vars(application)["__wrapped__"] = application
    return application


def wrapping_itself_through_a_partial() -> App:
    application = traced_anonymously(double_function)
    vars(application)["__wrapped__"] = functools.partial(application)
    return application


def marked() -> App:
    def application(*arguments: Any) -> Any:
        return single_function(*arguments)

    return markcoroutinefunction(application)


SINGLE: dict[str, App] = {
    # 1: the hint
    "hint": Hinted(single_function, _asgi_single_callable=True),
    "partial of hint": functools.partial(Hinted(single_function, _asgi_single_callable=True)),
    "both hints": Hinted(single_function, _asgi_single_callable=True, _asgi_double_callable=True),
    # 3: a class that is awaited
    "awaitable class": SingleEndpoint,
    "partial of awaitable class": functools.partial(SingleEndpoint),
    # 5: coroutine functions
    "coroutine function": single_function,
    "coroutine method": SingleObject().method,
    "object with coroutine call": SingleObject(),
    "partial of coroutine function": functools.partial(single_function_with_options, "options"),
    "Channels consumer": SingleObject.as_asgi(),
    "marked function": marked(),
    "adapted": double_to_single_callable(double_function),
    # 6: the signature
    "lambda": lambda s, r, se: single_function(s, r, send=se),
    "plain method": SingleObject().plain_method,
    "object with plain call": SingleObjectPlainCall(),
    "partial of plain function": functools.partial(with_options, "options"),
    # 8: what it wraps
    "wrapped coroutine function": traced(single_function),
    "wrapped object": traced(SingleObjectPlainCall()),
    "wrapped lambda": traced(lambda s, r, se: single_function(s, r, send=se)),
    "wrapped consumer": traced(SingleObject.as_asgi()),
    "wrapped awaitable class": traced(SingleEndpoint),
    "wrapped hint": traced(Hinted(single_function, _asgi_single_callable=True)),
    "partial of wrapped, with options": functools.partial(traced(with_options), "options"),
    "wrapped twice, with a partial between": traced(functools.partial(traced(single_function))),
}

DOUBLE: dict[str, App] = {
    # 2: the hint
    "hint": Hinted(double_function, _asgi_double_callable=True),
    "partial with hint": hinted_partial(),
    # 4: classes
    "class": DoubleClass,
    "class with open signature": DoubleClassWithOptions,
    # 7: the signature
    "function": double_function,
    "object": DoubleObject(),
    "partial of class": functools.partial(DoubleClass),
    "partial of class with open signature": functools.partial(DoubleClassWithOptions, option=1),
    "decorator that changes the style": downgraded(single_function),
    # 8: what it wraps
    "wrapped class": traced(DoubleClass),
    "wrapped function": traced(double_function),
    "wrapped hint": traced(Hinted(double_function, _asgi_double_callable=True)),
}

# 9: only a call can tell
OPEN: dict[str, App] = {
    "anonymous wrapper of single": traced_anonymously(single_function),
    "anonymous wrapper of single object": traced_anonymously(SingleObject()),
    "anonymous wrapper of double": traced_anonymously(double_function),
    "anonymous wrapper of double class": traced_anonymously(DoubleClass),
    "anonymous wrapper of open double class": traced_anonymously(DoubleClassWithOptions),
    "no signature, single": NoSignature(single_function),
    "no signature, double": NoSignature(DoubleClass),
    "either style": either,
    "partial of open": functools.partial(traced_anonymously(single_function)),
    "wrapped, and still open": traced(traced_anonymously(single_function)),
    "wrapping itself": wrapping_itself(),
    "wrapping itself through a partial": wrapping_itself_through_a_partial(),
}

ALL: dict[str, App] = {
    f"{style}: {name}": application
    for style, table in (("single", SINGLE), ("double", DOUBLE), ("open", OPEN))
    for name, application in table.items()
}


def run(application: Callable[[Any, Any, Any], Awaitable[Any]]) -> Any:
    async def call() -> Any:
        return await application(*ARGUMENTS)

    return asyncio.run(call())


@pytest.mark.parametrize("name", SINGLE)
def test_is_double_callable_with_asgi_3_application_says_no(name: str) -> None:
    assert is_double_callable(SINGLE[name]) is False


@pytest.mark.parametrize("name", DOUBLE)
def test_is_double_callable_with_asgi_2_application_says_yes(name: str) -> None:
    assert is_double_callable(DOUBLE[name]) is True


@pytest.mark.parametrize("name", OPEN)
def test_is_double_callable_where_only_a_call_can_tell_says_no(name: str) -> None:
    assert is_double_callable(OPEN[name]) is False


def test_is_double_callable_with_neither_signature_says_yes() -> None:
    def neither(receive: Any, send: Any) -> None: ...

    assert is_double_callable(neither) is True


@pytest.mark.parametrize("name", ALL)
def test_guarantee_single_callable_with_any_application_can_be_called_once(name: str) -> None:
    assert run(guarantee_single_callable(ALL[name])) == ARGUMENTS


@pytest.mark.parametrize("name", SINGLE)
def test_guarantee_single_callable_with_asgi_3_application_returns_the_same_object(
    name: str,
) -> None:
    assert guarantee_single_callable(SINGLE[name]) is SINGLE[name]


@pytest.mark.parametrize("name", [*(f"double: {n}" for n in DOUBLE), *(f"open: {n}" for n in OPEN)])
def test_guarantee_single_callable_result_is_taken_for_asgi_3(name: str) -> None:
    adapted = guarantee_single_callable(ALL[name])
    assert inspect.iscoroutinefunction(adapted)
    assert guarantee_single_callable(adapted) is adapted


def test_double_to_single_callable_calls_once_per_scope_and_passes_the_rest() -> None:
    scopes = []

    def application(scope: Any) -> Any:
        scopes.append(scope)
        return double_function(scope)

    adapted = double_to_single_callable(application)
    assert run(adapted) == ARGUMENTS
    assert run(adapted) == ARGUMENTS
    assert scopes == ["the scope"] * 2


def test_double_to_single_callable_with_open_application_takes_it_for_asgi_2() -> None:
    assert run(double_to_single_callable(either)) == ARGUMENTS


def test_open_application_of_asgi_3_style_is_called_once() -> None:
    calls = []

    def application(*arguments: Any) -> Any:
        calls.append(arguments)
        return single_function(*arguments)

    assert run(guarantee_single_callable(application)) == ARGUMENTS
    assert calls == [ARGUMENTS]


def test_open_application_that_returns_no_application_is_refused_by_name() -> None:
    def application(*arguments: Any) -> Any:
        return "a response"

    with pytest.raises(TypeError, match=r"application.* returned 'a response'"):
        run(guarantee_single_callable(application))


def fails_with_type_error(*arguments: Any) -> Any:
    raise TypeError(f"its own, for {len(arguments)}")


def fails_then_returns_nothing(*arguments: Any) -> Any:
    return None if len(arguments) == 1 else fails_with_type_error(*arguments)


def fails_then_returns_a_coroutine(*arguments: Any) -> Any:
    if len(arguments) == 1:
        return single_function(*arguments, None, None)
    return fails_with_type_error(*arguments)


@pytest.mark.parametrize(
    "application",
    [fails_with_type_error, fails_then_returns_nothing, fails_then_returns_a_coroutine],
)
def test_open_application_that_fails_with_type_error_raises_its_first_one(application: App) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="its own, for 3"):
            run(guarantee_single_callable(application))
        gc.collect()  # a coroutine that nobody awaited would warn here


def test_open_application_of_asgi_2_style_whose_instance_cannot_be_made_raises_why() -> None:
    def route(scope: Any) -> Any:
        raise ValueError(f"no route for {scope}")

    with pytest.raises(ValueError, match="no route for the scope"):
        run(guarantee_single_callable(traced_anonymously(route)))


def test_open_application_that_raises_anything_else_is_not_called_again() -> None:
    calls = []

    def application(*arguments: Any) -> Any:
        calls.append(arguments)
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        run(guarantee_single_callable(application))
    assert calls == [ARGUMENTS]
