"""What type checkers must see: checked by ``mypy --strict`` over tests/, never imported or run.

Every line is a promise of the package's types. Where the promise is that a call is refused, the line carries the
``type: ignore`` with the error's code; ``warn_unused_ignores`` makes a call that passes an error.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar, assert_type, cast, overload

from django_asyncbridge import (
    AsyncSingleThreadContext,
    Local,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.iteration import (
    LoopIterator,
    ThreadIterator,
    iterate_in_thread,
    iterate_on_loop,
)
from django_asyncbridge.bridge.sync import AsyncToSync, SyncToAsync
from django_asyncbridge.bridge.typing import (
    ASGI2Application,
    ASGI2Instance,
    ASGI2Protocol,
    ASGI3Application,
    ASGIApplication,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPRequestEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    LifespanScope,
    Scope,
    TLSExtension,
    WebSocketReceiveEvent,
    WebSocketScope,
    WWWScope,
)

T = TypeVar("T")

# --- ASGI: applications ----------------------------------------------------


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """A single-callable application that narrows its scope."""
    if scope["type"] == "http":
        assert_type(scope, HTTPScope)
        assert_type(scope["method"], str)
        await respond(send, str(scope.get("scheme", "http")).encode())
    elif scope["type"] == "websocket":
        assert_type(scope, WebSocketScope)
        await echo(receive, send)
    else:
        assert_type(scope, LifespanScope)
        await live(receive, send)


class Instance:
    """A single-callable application that is an object."""

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one connection."""


class Legacy:
    """A double-callable application that is a class."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one connection."""


def legacy(scope: Scope) -> ASGI2Instance:
    """A double-callable application that is a function."""

    async def instance(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await respond(send, scope["type"].encode())

    return instance


def middleware(inner: ASGI3Application) -> ASGI3Application:
    """An application around another, which changes a copy of the scope and the messages."""

    async def outer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_with_header(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                message["headers"] = [*headers, (b"x-outer", b"1")]
            await send(message)

        if scope["type"] != "lifespan":
            scope = scope.copy()
            scope["root_path"] = "/outer"
        await inner(scope, receive, send_with_header)

    return outer


SINGLE: list[ASGI3Application] = [
    application,
    Instance(),
    middleware(application),
    functools.partial(application),
]
LEGACY_CLASS: type[ASGI2Protocol] = Legacy
DOUBLE: list[ASGI2Application] = [Legacy, legacy, LEGACY_CLASS]
ANY: list[ASGIApplication] = [application, Instance(), Legacy, legacy]


async def run_legacy(
    app: ASGI2Application, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Call a double-callable application as the specification says."""
    await app(scope)(receive, send)


# --- ASGI: events ----------------------------------------------------------


async def respond(send: ASGISendCallable, body: bytes) -> None:
    """Send an HTTP response, with and without the keys that have a default."""
    await send({"type": "http.response.start", "status": 204})
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain")],
            "trailers": True,
        }
    )
    await send({"type": "http.response.body"})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})
    start: HTTPResponseStartEvent = {"type": "http.response.start", "status": 200}
    await send(start)
    await send(HTTPResponseBodyEvent(type="http.response.body", body=body, more_body=False))


async def respond_with_extensions(send: ASGISendCallable) -> None:
    """Send the events of each extension."""
    await send({"type": "http.response.debug", "info": {"template": "a.html"}})
    await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
    await send({"type": "http.response.push", "path": "/a.css", "headers": []})
    await send({"type": "http.response.pathsend", "path": "/srv/a.css"})
    with Path("a.css").open("rb") as file:
        await send({"type": "http.response.zerocopysend", "file": file, "count": 10})
    await send({"type": "websocket.http.response.start", "status": 401})
    await send({"type": "websocket.http.response.body", "body": b"no"})


async def send_wrong_events(send: ASGISendCallable) -> None:
    """Send what the specification does not have."""
    HTTPResponseStartEvent(type="http.response.start")  # type: ignore[typeddict-item]  # no status
    HTTPResponseBodyEvent(type="http.response.body", body="")  # type: ignore[typeddict-item]  # str
    await send({"type": "http.response.end"})  # type: ignore[misc, arg-type]  # no such event
    await send({"type": "http.disconnect"})  # type: ignore[misc, arg-type]  # received, never sent


async def echo(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer a WebSocket, narrowing each event with match."""
    while True:
        message = await receive()
        match message["type"]:
            case "websocket.connect":
                await send({"type": "websocket.accept"})
                await send({"type": "websocket.accept", "subprotocol": "v1", "headers": []})
            case "websocket.receive":
                assert_type(message, WebSocketReceiveEvent)
                assert_type(message.get("text"), str | None)
                assert_type(message.get("bytes"), bytes | None)
                await send({"type": "websocket.send", "text": message.get("text")})
            case "websocket.disconnect":
                assert_type(message["code"], int)
                assert_type(message.get("reason"), str | None)
                return
            case _:
                await send({"type": "websocket.close"})
                await send({"type": "websocket.close", "code": 1011, "reason": "unexpected"})


async def live(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer the lifespan protocol."""
    message = await receive()
    if message["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.startup.failed", "message": "no database"})
    elif message["type"] == "lifespan.shutdown":
        await send({"type": "lifespan.shutdown.complete"})
        await send({"type": "lifespan.shutdown.failed"})


async def read_body(receive: ASGIReceiveCallable) -> bytes:
    """Read a request's body, as code written for asgiref's types does."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        assert message["type"] == "http.request"
        assert_type(message, HTTPRequestEvent)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def complete_request(body: bytes) -> ASGIReceiveEvent:
    """Build an event with every key given, as code written for asgiref's types does."""
    return {"type": "http.request", "body": body, "more_body": False}


# --- ASGI: scopes ----------------------------------------------------------

SMALLEST: HTTPScope = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "query_string": b"",
    "headers": [],
}
FULLEST: WWWScope = {
    "type": "websocket",
    "asgi": {"version": "3.0", "spec_version": "2.5"},
    "http_version": "2",
    "scheme": "wss",
    "path": "/é",
    "raw_path": b"/%c3%a9",
    "query_string": b"a=1",
    "root_path": "",
    "headers": [(b"host", b"example.org")],
    "client": ("192.0.2.1", 40000),
    "server": ("/run/site.sock", None),
    "subprotocols": ["v1"],
    "state": {"pool": object()},
    "extensions": {"websocket.http.response": {}},
}


def tls_of(scope: WWWScope) -> str | None:
    """Read what a server says of TLS."""
    extensions = scope.get("extensions") or {}
    assert_type(extensions, dict[str, dict[object, object]])
    tls = cast("TLSExtension", extensions["tls"])
    assert_type(tls["tls_version"], int | None)
    return tls.get("client_cert_name")


# --- sync_to_async ---------------------------------------------------------


def describe(number: int, *, unit: str = "m") -> str:
    """A plain function."""
    return f"{number} {unit}"


def first(items: list[T]) -> T:
    """A generic function."""
    return items[0]


@overload
def double(value: int) -> int: ...
@overload
def double(value: str) -> str: ...
def double(value: int | str) -> int | str:
    """An overloaded function."""
    return value * 2


class Thing:
    """The ways to have a function in a class."""

    def plain(self, number: int) -> str:
        """Wrapped where it is used."""
        return describe(number)

    @sync_to_async
    def method(self, number: int) -> str:
        """Wrapped without arguments."""
        return describe(number)

    @sync_to_async(thread_sensitive=False)
    def free(self, number: int) -> str:
        """Wrapped with arguments."""
        return describe(number)

    @classmethod
    @sync_to_async
    def of_class(cls, number: int) -> str:
        """Wrapped inside the class method."""
        return describe(number)

    @staticmethod
    @sync_to_async
    def static(number: int) -> str:
        """Wrapped inside the static method."""
        return describe(number)

    async def fetch(self, number: int) -> str:
        """Wrapped where it is used."""
        return describe(number)

    @async_to_sync
    async def get(self, number: int) -> str:
        """Wrapped without arguments."""
        return describe(number)

    @async_to_sync(force_new_loop=True)
    async def get_alone(self, number: int) -> str:
        """Wrapped with arguments."""
        return describe(number)

    @classmethod
    @async_to_sync
    async def get_of_class(cls, number: int) -> str:
        """Wrapped inside the class method."""
        return describe(number)

    @staticmethod
    @async_to_sync
    async def get_static(number: int) -> str:
        """Wrapped inside the static method."""
        return describe(number)


@sync_to_async
def decorated(number: int) -> str:
    """Wrapped without arguments."""
    return describe(number)


@sync_to_async(thread_sensitive=True, context=Context())
def decorated_with(number: int) -> str:
    """Wrapped with arguments."""
    return describe(number)


async def call_wrapped_functions(thing: Thing) -> None:
    """Await each kind of wrapped function."""
    assert_type(await sync_to_async(describe)(1, unit="s"), str)
    assert_type(await sync_to_async(describe, thread_sensitive=False)(1), str)
    assert_type(await decorated(1), str)
    assert_type(await decorated_with(1), str)
    assert_type(await SyncToAsync(describe)(1), str)
    assert_type(await sync_to_async(thing.plain)(1), str)
    assert_type(await sync_to_async(Thing.plain)(thing, 1), str)
    assert_type(await thing.method(1), str)
    assert_type(await Thing.method(thing, 1), str)
    assert_type(await thing.free(1), str)
    assert_type(await Thing.of_class(1), str)
    assert_type(await Thing.static(1), str)
    assert_type(await sync_to_async(first)([1]), int)
    assert_type(await sync_to_async(first)(["a"]), str)
    assert_type(await sync_to_async(Thing)(), Thing)
    assert_type(await sync_to_async(functools.partial(describe, 1))(), str)


async def call_overloaded() -> None:
    """Await a wrapped function that has overloads."""
    assert_type(await sync_to_async(double)(1), int)
    # mypy keeps the first overload where it matches a ParamSpec, pyright keeps them all.
    await sync_to_async(double)("a")  # type: ignore[arg-type]  # a limit of mypy, see above


async def call_wrapped_functions_wrongly(thing: Thing) -> None:
    """Give what the wrapped function does not take."""
    await decorated("1")  # type: ignore[arg-type]  # not a number
    await decorated(1, unit="s")  # type: ignore[call-arg]  # no such argument
    await thing.method()  # type: ignore[call-arg]  # the number is missing
    await thing.method("1")  # type: ignore[arg-type]  # not a number


AS_COROUTINE_FUNCTION: Callable[[int], Coroutine[Any, Any, str]] = decorated
AS_AWAITABLE_FUNCTION: Callable[[int], Awaitable[str]] = sync_to_async(describe)


async def call_with_executors(executor: Executor, pool: ThreadPoolExecutor) -> None:
    """Name an executor of any class, and only where it is allowed."""
    assert_type(await sync_to_async(describe, thread_sensitive=False, executor=executor)(1), str)
    sync_to_async(describe, thread_sensitive=False, executor=ProcessPoolExecutor())
    sync_to_async(describe, thread_sensitive=False, executor=None)
    sync_to_async(describe, executor=None)
    sync_to_async(thread_sensitive=False, executor=executor)(describe)
    # The TypeError of the run time, found before it:
    sync_to_async(describe, executor=pool)  # type: ignore[call-overload]  # thread-sensitive
    sync_to_async(describe, thread_sensitive=True, executor=pool)  # type: ignore[call-overload]  # same
    sync_to_async(executor=pool)  # type: ignore[call-overload]  # same, as a decorator
    sync_to_async(thread_sensitive=True, executor=pool)  # type: ignore[call-overload]  # same


# --- async_to_sync ---------------------------------------------------------


async def fetch(number: int, *, unit: str = "m") -> str:
    """A plain coroutine function."""
    return describe(number, unit=unit)


async def fetch_first(items: list[T]) -> T:
    """A generic coroutine function."""
    return items[0]


def awaitable(number: int) -> Awaitable[str]:
    """A function that is not a coroutine function and returns something to await."""
    return fetch(number)


def call_wrapped_coroutine_functions(thing: Thing) -> None:
    """Call each kind of wrapped coroutine function."""
    assert_type(async_to_sync(fetch)(1, unit="s"), str)
    assert_type(async_to_sync(fetch, force_new_loop=True)(1), str)
    assert_type(async_to_sync(force_new_loop=True)(fetch)(1), str)
    assert_type(async_to_sync(awaitable)(1), str)
    assert_type(AsyncToSync(fetch)(1), str)
    assert_type(async_to_sync(thing.fetch)(1), str)
    assert_type(async_to_sync(Thing.fetch)(thing, 1), str)
    assert_type(thing.get(1), str)
    assert_type(Thing.get(thing, 1), str)
    assert_type(thing.get_alone(1), str)
    assert_type(Thing.get_of_class(1), str)
    assert_type(Thing.get_static(1), str)
    assert_type(async_to_sync(fetch_first)([1]), int)
    assert_type(async_to_sync(functools.partial(fetch, 1))(), str)
    assert_type(async_to_sync(sync_to_async(describe))(1), str)


def call_wrapped_coroutine_functions_wrongly() -> None:
    """Give what the wrapped function does not take."""
    async_to_sync(fetch)("1")  # type: ignore[arg-type]  # not a number
    async_to_sync(describe)  # type: ignore[arg-type]  # its result cannot be awaited


# --- Iterating across the bridge -------------------------------------------


def generator(number: int) -> Generator[str, None, None]:
    """A generator function, annotated as one."""
    yield describe(number)


def iterator(number: int) -> Iterator[str]:
    """A generator function, or not: the annotation does not say."""
    yield describe(number)


def generate_first(items: list[T]) -> Iterator[T]:
    """A generic generator function."""
    yield items[0]


async def async_generator(number: int) -> AsyncIterator[str]:
    """An async generator function."""
    yield describe(number)


async def generate_first_async(items: list[T]) -> AsyncIterator[T]:
    """A generic async generator function."""
    yield items[0]


class Generators:
    """Generator functions in a class."""

    @sync_to_async
    def method(self, number: int) -> Iterator[str]:
        """Wrapped without arguments."""
        yield describe(number)

    @sync_to_async(thread_sensitive=False)
    def free(self, number: int) -> Generator[str, None, None]:
        """Wrapped with arguments."""
        yield describe(number)

    @async_to_sync
    async def amethod(self, number: int) -> AsyncIterator[str]:
        """Wrapped without arguments."""
        yield describe(number)

    @async_to_sync(force_new_loop=True)
    async def alone(self, number: int) -> AsyncIterator[str]:
        """Wrapped with arguments."""
        yield describe(number)


def take(items: AsyncIterator[str]) -> None:
    """A consumer of another library."""


async def iterate_over_generators(generators: Generators) -> None:
    """Iterate over what each kind of generator function makes."""
    async for item in sync_to_async(generator)(1):
        assert_type(item, str)
    assert_type([item async for item in sync_to_async(iterator)(1)], list[str])
    assert_type([item async for item in sync_to_async(generate_first)([1])], list[int])
    assert_type([item async for item in generators.method(1)], list[str])
    assert_type([item async for item in generators.free(1)], list[str])
    assert_type(await anext(sync_to_async(generator)(1)), str)
    async with sync_to_async(iterator)(1) as items:
        assert_type(items, ThreadIterator[str])
        take(items)
    async with contextlib.aclosing(sync_to_async(generator)(1)) as closing:
        assert_type([item async for item in closing], list[str])
    async with contextlib.asynccontextmanager(sync_to_async(iterator))(1) as value:
        assert_type(value, str)
    take(sync_to_async(iterator)(1))
    # An ordinary function that returns an iterator; see `ThreadCall`.
    assert_type(await sync_to_async(iterator)(1), Iterator[str])
    async with iterate_in_thread(generator(1), ahead=3) as direct:
        assert_type(direct, ThreadIterator[str])
        assert_type([item async for item in direct], list[str])


async def iterate_over_no_generators(thing: Thing) -> None:
    """What is an ordinary call stays one."""
    assert_type(await asyncio.create_task(sync_to_async(describe)(1)), str)
    async for _ in sync_to_async(describe)(1):  # type: ignore[misc]  # a string
        pass
    sync_to_async(generator)("1")  # type: ignore[arg-type]  # not a number
    await generator(1)  # type: ignore[misc]  # it was not wrapped
    iterate_in_thread(1)  # type: ignore[arg-type]  # not iterable
    iterate_in_thread(async_generator(1))  # type: ignore[arg-type]  # can be iterated over as it is


def iterate_over_async_generators(generators: Generators, unknown: Any) -> None:
    """Iterate over what each kind of async generator function makes."""
    assert_type(async_to_sync(async_generator)(1), LoopIterator[str])
    assert_type(async_to_sync(force_new_loop=True)(async_generator)(1), LoopIterator[str])
    assert_type(list(async_to_sync(generate_first_async)([1])), list[int])
    assert_type(list(generators.amethod(1)), list[str])
    assert_type(list(generators.alone(1)), list[str])
    assert_type(list(Generators.amethod(generators, 1)), list[str])
    with iterate_on_loop(async_generator(1)) as items:
        assert_type(items, LoopIterator[str])
        assert_type(next(items), str)
    with contextlib.contextmanager(async_to_sync(async_generator))(1) as value:
        assert_type(value, str)
    async_to_sync(async_generator)("1")  # type: ignore[arg-type]  # not a number
    iterate_on_loop([1])  # type: ignore[arg-type]  # can be iterated over as it is
    # Of what nothing is known, nothing is wrong.
    async_to_sync(unknown)(1)
    async_to_sync(unknown.method)(1)
    async_to_sync(force_new_loop=True)(unknown)(1)


# --- Contexts, Local, marks ------------------------------------------------


async def use_contexts(executor: Executor) -> None:
    """Enter the contexts; the value of `as` is the context."""
    async with ThreadSensitiveContext() as shared:
        assert_type(shared, ThreadSensitiveContext)
    async with ThreadSensitiveContext(executor=executor) as own:
        assert_type(own, ThreadSensitiveContext)
    with AsyncSingleThreadContext() as single:
        assert_type(single, AsyncSingleThreadContext)


def use_local() -> None:
    """Any name may be set and read; what is read has any type."""
    local = Local()
    assert_type(local.language, Any)
    local.language = "de"
    del local.language
    assert_type(Local(thread_critical=True), Local)


def use_marks(function: Callable[[int], str]) -> None:
    """Marking keeps the type; asking takes anything."""
    assert_type(markcoroutinefunction(function), Callable[[int], str])
    assert iscoroutinefunction(fetch)
    assert not iscoroutinefunction(1)


EXECUTOR: Executor = CurrentThreadExecutor(None)
