"""What counts as never blocking: exactly the code that was marked or named, nothing that looks like it."""

import asyncio
import contextvars
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asgiref.sync
import pytest
from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import markcoroutinefunction, sync_to_async
from django_asyncbridge.safety import (
    HOOKS,
    async_safe,
    definition_path,
    is_async_safe,
    name_async_safe,
    refusal,
)
from tests.support import run_child

HERE = __name__


@pytest.fixture(autouse=True)
def _nothing_named() -> Iterator[None]:
    yield
    name_async_safe(())


@async_safe
def marked(*_args: object) -> int:
    return 1


def plain(*_args: object) -> int:
    return 2


async def coroutine() -> None: ...


async def generator() -> AsyncIterator[None]:
    yield


def decorated(func: Callable[..., int]) -> Callable[..., int]:
    """Wrap a function as careful decorators do: the wrapper gets all attributes and names."""

    @functools.wraps(func)
    def wrapper(*args: object) -> int:
        return func(*args)

    return wrapper


wrapped_below = async_safe(decorated(plain))


class Base:
    """A middleware as MiddlewareMixin makes them: being called runs the hooks."""

    def __call__(self, request: str) -> list[str]:
        return [self.process_request(request), self.process_response(request)]

    def process_request(self, request: str) -> str:
        return f"base {request}"

    def process_response(self, request: str) -> str:
        return f"base answer to {request}"

    def other(self) -> None: ...


@async_safe
class Marked(Base):
    def process_request(self, request: str) -> str:
        return f"marked {request}"


class Inheriting(Marked):
    """Overrides nothing."""

    def more(self) -> None: ...


class Overriding(Marked):
    def process_request(self, request: str) -> str:
        return f"{super().process_request(request)}, overridden"


@async_safe
class OverridingMarked(Marked):
    def process_request(self, request: str) -> str: ...  # type: ignore[empty-body]


class Elsewhere:
    """Has a hook that Marked does not have."""

    def process_view(self) -> None: ...


class Both(Marked, Elsewhere):
    """The mark of one base says nothing about the other."""


class OneMethod:
    @async_safe
    def process_view(self) -> None: ...

    def process_exception(self) -> None: ...


class InheritingOneMethod(OneMethod):
    """Has the very function that is marked."""


class Kinds:
    @async_safe
    @staticmethod
    def static() -> None: ...

    @classmethod
    @async_safe
    def of_class(cls) -> None: ...

    @async_safe
    @classmethod
    def of_class_too(cls) -> None: ...

    @classmethod
    def process_view(cls) -> None: ...


@async_safe
class KindsMarked(Kinds):
    @staticmethod
    def process_request() -> None: ...

    @classmethod
    def process_response(cls) -> None: ...


# --- Functions ---------------------------------------------------------------------


def test_async_safe_function_is_returned_and_safe() -> None:
    assert marked() == 1
    assert is_async_safe(marked)
    assert not is_async_safe(plain)


def test_async_safe_partial_of_marked_function_is_safe() -> None:
    nested: Any = functools.partial(functools.partial(marked, 1), 2)
    assert is_async_safe(nested)
    assert not is_async_safe(functools.partial(plain))


def test_async_safe_wrapper_of_marked_function_is_not_safe() -> None:
    """functools.wraps copies the mark's attribute; what the decorator adds may block."""
    wrapper = decorated(marked)
    assert vars(wrapper).keys() >= vars(marked).keys()
    assert wrapper() == 1
    assert not is_async_safe(wrapper)


def test_async_safe_mark_on_wrapper_is_for_the_wrapper_only() -> None:
    assert wrapped_below() == 2
    assert is_async_safe(wrapped_below)
    assert not is_async_safe(plain)
    assert not is_async_safe(decorated(wrapped_below))


def test_async_safe_cached_function_is_safe_by_a_mark_above_the_cache() -> None:
    cached = async_safe(functools.lru_cache(plain))
    assert is_async_safe(cached)
    assert not is_async_safe(functools.lru_cache(marked))


def test_async_safe_function_of_sync_to_async_is_not_safe() -> None:
    assert not is_async_safe(sync_to_async(marked))


@pytest.mark.parametrize("value", [None, 1, "text", object(), coroutine, generator])
def test_async_safe_anything_else_is_not_safe(value: object) -> None:
    assert not is_async_safe(value)


# --- Methods and classes -----------------------------------------------------------


def test_async_safe_class_has_safe_hooks_own_and_inherited() -> None:
    middleware = Marked()
    assert middleware("r") == ["marked r", "base answer to r"]
    assert is_async_safe(Marked)
    assert is_async_safe(middleware)
    assert is_async_safe(middleware.process_request)
    assert is_async_safe(middleware.process_response)
    assert is_async_safe(functools.partial(middleware.process_response, "r"))


def test_async_safe_class_has_no_other_safe_methods() -> None:
    assert not is_async_safe(Marked().other)


def test_async_safe_class_says_nothing_about_its_base() -> None:
    base = Base()
    assert base("r") == ["base r", "base answer to r"]
    assert not any(map(is_async_safe, (Base, base, base.process_request, base.process_response)))


def test_async_safe_subclass_that_overrides_nothing_has_safe_hooks() -> None:
    middleware = Inheriting()
    assert is_async_safe(middleware)
    assert is_async_safe(middleware.process_request)
    assert not is_async_safe(Inheriting)


def test_async_safe_subclass_that_overrides_a_hook_has_that_one_unsafe() -> None:
    middleware = Overriding()
    assert middleware("r")[0] == "marked r, overridden"
    assert not is_async_safe(middleware.process_request)
    assert is_async_safe(middleware.process_response)


def test_async_safe_subclass_that_overrides_a_hook_is_not_safe_to_call() -> None:
    """The ``__call__`` is the marked one, but it runs the hook that is not."""
    assert Overriding.__call__ is Marked.__call__
    assert not is_async_safe(Overriding())
    assert not is_async_safe(Overriding().__call__)


def test_async_safe_hook_below_super_is_safe() -> None:
    middleware = Overriding()
    assert is_async_safe(super(Overriding, middleware).process_request)


def test_async_safe_subclass_that_overrides_and_is_marked_is_safe() -> None:
    assert is_async_safe(OverridingMarked())
    assert is_async_safe(OverridingMarked().process_request)


def test_async_safe_mark_of_one_base_does_not_reach_the_other() -> None:
    assert not is_async_safe(Both().process_view)
    assert is_async_safe(Both().process_request)
    assert not is_async_safe(Both())


def test_async_safe_method_is_safe_alone_and_inherited() -> None:
    for middleware in (OneMethod(), InheritingOneMethod()):
        assert is_async_safe(middleware.process_view)
        assert not is_async_safe(middleware.process_exception)
    assert is_async_safe(OneMethod.process_view)


def test_async_safe_static_and_class_methods_are_safe() -> None:
    safe = (Kinds.static, Kinds().static, Kinds.of_class, Kinds.of_class_too, Kinds().of_class)
    assert all(map(is_async_safe, safe))


def test_async_safe_class_with_static_and_class_hooks_has_safe_class_hooks() -> None:
    assert is_async_safe(KindsMarked.process_response)
    assert is_async_safe(KindsMarked().process_response)
    assert is_async_safe(KindsMarked().process_view)
    assert not is_async_safe(Kinds().process_view)


def test_async_safe_object_without_call_of_marked_class_is_not_safe() -> None:
    assert not is_async_safe(KindsMarked())


def test_async_safe_bound_method_marks_its_function() -> None:
    class Local:
        def method(self) -> None: ...

    one = Local()
    assert async_safe(one.method) == one.method
    assert is_async_safe(Local().method)


def test_async_safe_middleware_in_async_mode_is_not_sync_and_so_not_safe() -> None:
    """Its call returns a coroutine; there is nothing to decide about it. Its hooks are sync all the same."""
    middleware: Any = markcoroutinefunction(Marked())
    assert not is_async_safe(middleware)
    assert is_async_safe(middleware.process_request)


# --- What cannot be marked -----------------------------------------------------------


class AsyncOnly:
    async def __call__(self) -> None: ...


class AsyncWithHook(AsyncOnly):
    def process_view(self) -> None: ...


class NoHook:
    value = 1


REFUSED = [
    (coroutine, "it is async"),
    (generator, "it is async"),
    (sync_to_async(plain), "it is async"),
    (AsyncOnly(), "it is async"),
    (functools.partial(coroutine), "it is async"),
    (AsyncOnly, "no sync hook"),
    (NoHook, "no sync hook"),
    (functools.partial(plain), "a partial object; mark the function"),
    (Base(), "an object; mark its class, Base"),
    (len, "takes no attributes"),
    (1, "not callable"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=lambda value: str(value)[:30])
def test_async_safe_what_cannot_be_marked_is_refused_with_the_reason(
    value: Any, reason: str
) -> None:
    with pytest.raises(TypeError, match=f"^async_safe cannot mark .*: .*{reason}"):
        async_safe(value)
    assert not is_async_safe(value)


def test_async_safe_refused_function_is_left_as_it_was() -> None:
    before = dict(vars(generator))
    with pytest.raises(TypeError):
        async_safe(generator)

    async def consume() -> list[None]:
        return [one async for one in generator()]

    assert asyncio.run(consume()) == [None]
    assert vars(generator) == before


def test_async_safe_class_with_one_sync_hook_can_be_marked() -> None:
    assert refusal(AsyncWithHook) is None
    marked_class = async_safe(type("Copy", (AsyncWithHook,), {}))
    assert is_async_safe(marked_class().process_view)
    assert not is_async_safe(marked_class())


def test_async_safe_hooks_are_those_of_django() -> None:
    assert HOOKS[0] == "__call__"
    assert set(HOOKS[1:]) == {
        f"process_{what}"
        for what in ("request", "view", "template_response", "response", "exception")
    }


# --- Names -------------------------------------------------------------------------


def test_name_async_safe_function_is_safe_until_others_are_named() -> None:
    name_async_safe([f"{HERE}.plain"])
    assert is_async_safe(plain)
    assert is_async_safe(functools.partial(plain))
    name_async_safe([f"{HERE}.Base"])
    assert not is_async_safe(plain)
    assert is_async_safe(marked)


def test_name_async_safe_wrapper_with_the_same_name_is_not_safe() -> None:
    name_async_safe([f"{HERE}.plain"])
    assert decorated(plain).__qualname__ == "plain"
    assert not is_async_safe(decorated(plain))


def test_name_async_safe_class_is_as_if_marked() -> None:
    name_async_safe([f"{HERE}.Base"])
    assert is_async_safe(Base)
    assert is_async_safe(Base())
    assert is_async_safe(Base().process_request)
    # Both are the marked class's or overridden below Base.
    assert not is_async_safe(Overriding().process_request)


def test_name_async_safe_method_is_safe_alone() -> None:
    name_async_safe([f"{HERE}.Base.process_request"])
    assert is_async_safe(Base().process_request)
    assert not is_async_safe(Base().process_response)
    assert not is_async_safe(Base())


def test_name_async_safe_call_makes_objects_safe() -> None:
    name_async_safe([f"{HERE}.Base.__call__"])
    assert is_async_safe(Base())


def test_name_async_safe_coroutine_function_is_not_safe() -> None:
    name_async_safe([f"{HERE}.coroutine"])
    assert not is_async_safe(coroutine)


def test_name_async_safe_builtin_function_is_safe() -> None:
    name_async_safe(["builtins.len"])
    assert is_async_safe(len)


def test_name_async_safe_imports_nothing() -> None:
    name_async_safe(["no_such_package.module.function"])
    assert "no_such_package" not in sys.modules


@pytest.mark.parametrize(
    ("code", "path"),
    [
        (plain, f"{HERE}.plain"),
        (Base, f"{HERE}.Base"),
        (Base.process_request, f"{HERE}.Base.process_request"),
        (Marked().process_response, f"{HERE}.Base.process_response"),
        (subprocess.run, "subprocess.run"),
        (Base(), None),
        (decorated(plain), None),
        (functools.partial(plain), None),
        (str.upper, None),
    ],
    ids=str,
)
def test_definition_path_is_where_the_code_is_defined(code: object, path: str | None) -> None:
    assert definition_path(code) == path


# --- Without Django ----------------------------------------------------------------


def test_async_safe_module_needs_no_django() -> None:
    run_child(
        """
        import sys
        from django_asyncbridge.safety import async_safe, is_async_safe

        assert is_async_safe(async_safe(lambda: 1))
        assert not {"django", "asgiref"} & set(sys.modules)
        """
    )


# --- What comes of it ---------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have marks of this test forgotten afterwards."""
    monkeypatch.setattr(_state, "runs_anywhere", _state.runs_anywhere)


def name_of_thread() -> str:
    return threading.current_thread().name


@pytest.mark.usefixtures("hook")
def test_async_safe_function_runs_in_the_thread_of_the_loop_and_its_errors_come_out() -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var")

    @async_safe
    def here(*, fail: bool = False) -> str:
        var.set(3)
        if fail:
            raise KeyError("no good")
        return name_of_thread()

    async def main() -> None:
        assert await sync_to_async(here)() == name_of_thread()
        assert var.get() == 3
        assert await sync_to_async(name_of_thread)() != name_of_thread()
        assert await asgiref.sync.sync_to_async(here)() == name_of_thread()
        with pytest.raises(KeyError, match="no good"):
            await sync_to_async(here)(fail=True)

    asyncio.run(main())


@pytest.mark.usefixtures("hook")
def test_async_safe_function_with_a_place_of_its_own_runs_there() -> None:
    async def main(function: Callable[[], str]) -> None:
        with ThreadPoolExecutor(1, "elsewhere") as executor:
            call = sync_to_async(function, thread_sensitive=False, executor=executor)
            assert (await call()).startswith("elsewhere")
        in_context = sync_to_async(function, context=contextvars.copy_context())
        assert await in_context() != name_of_thread()

    @async_safe
    def safe() -> str:
        return name_of_thread()

    asyncio.run(main(safe))


@pytest.mark.usefixtures("hook")
def test_async_safe_hooks_of_a_middleware_cross_nowhere() -> None:
    """Django calls them through sync_to_async."""
    threads: list[str] = []

    class Noting(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            threads.append(name_of_thread())

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def main() -> None:
        middleware: Any = Noting(view)
        await middleware(HttpRequest())
        name_async_safe([definition_path(Noting.process_request) or ""])
        try:
            await middleware(HttpRequest())
        finally:
            name_async_safe([])

    asyncio.run(main())
    assert threads[0] != name_of_thread()
    assert threads[1] == name_of_thread()
