"""Our public surface against that of the installed asgiref, module by module, name by name.

Whoever replaces ``asgiref.`` by ``django_asyncbridge.bridge.`` must find every public name, with every call that
was right still right. What differs on purpose is in `ON_PURPOSE`, with the reason.
"""

import ast
import contextvars
import importlib
import inspect
import itertools
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar

import asgiref
import pytest

from django_asyncbridge import bridge, conf, interop
from django_asyncbridge.bridge.local import Local
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
)


@pytest.fixture(autouse=True)
def untouched_asgiref() -> Iterator[None]:
    """Compare with asgiref as it is, not as the app leaves it."""
    accelerated = conf.usable().accelerate_django
    interop.uninstall()
    yield
    interop.install(accelerated)


# The version whose signatures are ours. Older ones have fewer names and fewer parameters.
OUR_ASGIREF = (3, 13)
INSTALLED_ASGIREF = tuple(int(part) for part in asgiref.__version__.split(".")[:2])

# Where ours differs: from the asgirefs before which version, and why.
ON_PURPOSE = {
    "current_thread_executor.CurrentThreadExecutor.__init__": (
        (3, 9),
        "it had none around it then",
    ),
    "current_thread_executor.CurrentThreadExecutor.submit": (
        (3, 9),
        "fn could be given by name then",
    ),
    "sync.AsyncToSync.main_wrap": ((3, 9), "it got the arguments then, and the awaitable since"),
}
# Magic methods that the interpreter writes itself, and that say nothing about a class's use.
WRITTEN_BY_PYTHON = {"__subclasshook__", "__annotate__", "__annotate_func__"}
# The only magic methods whose arguments a caller can name; the others Python calls, by position.
CALLED_BY_USERS = {"__init__", "__new__", "__call__"}
MISSING = object()


def modules_of(package: ModuleType) -> dict[str, ModuleType]:
    """Import all public modules of a package, and return them by their name inside it."""
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if not name.startswith("_")
    }


THEIRS = modules_of(asgiref)
OURS = modules_of(bridge)


def bound_names(statements: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind themselves; an import only passes a name on."""
    for statement in statements:
        match statement:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=body, orelse=orelse):
                yield from bound_names(body + orelse)


def public_names(module: ModuleType) -> set[str]:
    """Return the public names a module defines."""
    names = bound_names(ast.parse(inspect.getsource(module)).body)
    return {name for name in names if not name.startswith("_")}


def public_members(cls: type) -> dict[str, Any]:
    """Return what a class defines for its users: public names, and the magic methods written in it."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_")
        or (name.startswith("__") and is_method(value) and name not in WRITTEN_BY_PYTHON)
    }


def is_method(value: object) -> bool:
    """Tell whether a value found in a class is a method or a property."""
    return isinstance(value, (FunctionType, classmethod, staticmethod, property))


def kind_of(value: object) -> str:
    """Name the way a name is used: called, awaited, read, made instances of."""
    if isinstance(value, property):
        return "value"
    if isinstance(value, (classmethod, staticmethod)):
        return f"{type(value).__name__} {kind_of(value.__func__)}"
    if inspect.isclass(value):
        return "class"
    if inspect.iscoroutinefunction(value):
        return "coroutine function"
    return "function" if inspect.isroutine(value) else "value"


def compare(path: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Yield a sentence for each way in which a use of `theirs` would fail on `ours`."""
    if ours is MISSING:
        yield f"{path}: missing"
    elif kind_of(theirs) != kind_of(ours):
        yield f"{path}: {kind_of(theirs)} there, {kind_of(ours)} here"
    elif kind_of(theirs) == "class":
        for name, member in public_members(theirs).items():
            yield from compare(
                f"{path}.{name}", member, inspect.getattr_static(ours, name, MISSING)
            )
    elif kind_of(theirs) != "value":
        yield from compare_calls(path, unwrapped(theirs), unwrapped(ours))


def unwrapped(value: Any) -> Callable[..., Any]:
    """Return the function in a class method or static method, or the function itself."""
    function: Callable[..., Any] = getattr(value, "__func__", value)
    return function


def compare_calls(path: str, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Iterator[str]:
    """Yield a sentence for each parameter that is not ours too, and each of ours that must be given."""
    by_name = not is_magic(theirs.__name__) or theirs.__name__ in CALLED_BY_USERS
    expected = list(inspect.signature(theirs).parameters.values())
    found = list(inspect.signature(ours).parameters.values())
    for one, other in itertools.zip_longest(expected, found):
        if one is None:
            if not may_be_added(other):
                yield f"{path}: {other} is one more, and no keyword with a default"
        elif other is None or shape(one, by_name) != shape(other, by_name):
            yield f"{path}: {one} there, {other} here"


def is_magic(name: str) -> bool:
    """Tell whether a name is one of those that Python gives a meaning."""
    return name.startswith("__") and name.endswith("__")


def shape(parameter: inspect.Parameter, by_name: bool) -> tuple[object, ...]:
    """Return what a caller sees of a parameter: its name only where it can be used."""
    named = by_name and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    return named and parameter.name, parameter.kind, parameter.default


def may_be_added(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter that asgiref has not got disturbs nobody."""
    return parameter.default is not parameter.empty and (
        parameter.kind is parameter.KEYWORD_ONLY or INSTALLED_ASGIREF < OUR_ASGIREF
    )


def differences(module_name: str) -> list[str]:
    """Return all differences of one module, those on purpose as well."""
    theirs, ours = THEIRS[module_name], OURS[module_name]
    return [
        line
        for name in sorted(public_names(theirs))
        for line in compare(
            f"{module_name}.{name}", getattr(theirs, name), getattr(ours, name, MISSING)
        )
    ]


def test_surface_modules_are_all_there() -> None:
    assert set(THEIRS) <= set(OURS)


@pytest.mark.parametrize("module_name", sorted(THEIRS))
def test_surface_module_has_every_name_and_signature_of_asgiref(module_name: str) -> None:
    found = {line.split(": ")[0]: line for line in differences(module_name)}
    on_purpose = {
        path
        for path, (before, _) in ON_PURPOSE.items()
        if path.startswith(f"{module_name}.") and before > INSTALLED_ASGIREF
    }
    # Both ways: nothing differs that is not named, nothing is named that does not differ.
    assert {path: line for path, line in found.items() if path not in on_purpose} == {}
    assert on_purpose <= set(found)


def test_surface_typing_exports_every_name_that_asgiref_exports() -> None:
    assert set(THEIRS["typing"].__all__) <= set(OURS["typing"].__all__)


# --- The attributes that others reach into (promise P10) ---------------------

CLASS_ATTRIBUTES = {
    "threadlocal": (SyncToAsync, threading.local),
    "single_thread_executor": (SyncToAsync, Executor),
    "thread_sensitive_context": (SyncToAsync, contextvars.ContextVar),
    "deadlock_context": (SyncToAsync, contextvars.ContextVar),
    "context_to_thread_executor": (SyncToAsync, MutableMapping),
    "executors": (AsyncToSync, Local),
    "loop_thread_executors": (AsyncToSync, MutableMapping),
    "async_single_thread_context": (AsyncToSync, contextvars.ContextVar),
}


def plain() -> None:
    """Be wrapped."""


async def coroutine() -> None:
    """Be wrapped."""


@pytest.mark.parametrize("name", CLASS_ATTRIBUTES)
def test_surface_class_attribute_is_of_the_documented_kind(name: str) -> None:
    owner, kind = CLASS_ATTRIBUTES[name]
    assert isinstance(getattr(owner, name), kind)


def test_surface_registries_hold_an_executor_for_a_context_and_forget_both() -> None:
    with ThreadPoolExecutor(1) as executor:
        registries: list[tuple[MutableMapping[Any, Any], object]] = [
            (SyncToAsync.context_to_thread_executor, ThreadSensitiveContext()),
            (AsyncToSync.context_to_thread_executor, AsyncSingleThreadContext()),
        ]
        while registries:
            registry, context = registries.pop()
            before = len(registry)
            registry[context] = executor
            assert registry[context] is executor
            del context
            assert len(registry) == before


def test_surface_sync_to_async_object_shows_its_parts() -> None:
    wrapper = SyncToAsync(plain)
    assert wrapper.func is plain
    parameters = inspect.signature(wrapper.thread_handler).parameters.values()
    assert [str(parameter).split(":")[0] for parameter in parameters] == [
        "loop",
        "exc_info",
        "task_context",
        "func",
        "*args",
        "**kwargs",
    ]


def test_surface_async_to_sync_object_shows_its_parts() -> None:
    wrapper = AsyncToSync(coroutine, force_new_loop=True)
    assert wrapper.awaitable is coroutine
    assert wrapper.force_new_loop is True
    assert inspect.iscoroutinefunction(wrapper.main_wrap)
    assert list(inspect.signature(wrapper.main_wrap).parameters) == [
        "call_result",
        "exc_info",
        "task_context",
        "context",
        "awaitable",
    ]


# --- What our own modules export ---------------------------------------------


def bridge_files() -> list[str]:
    """Return the names of all modules of the bridge, the private ones as well, and of the package."""
    inside = [info.name for info in pkgutil.iter_modules(bridge.__path__)]
    return ["django_asyncbridge", *(f"{bridge.__name__}.{name}" for name in inside)]


def own_names(module: ModuleType) -> set[str]:
    """Return the public names that a module defines as interface: no logger, no type variable."""
    helpers = (logging.Logger, TypeVar, ParamSpec)
    return {name for name in public_names(module) if not isinstance(getattr(module, name), helpers)}


def passed_on_names(module: ModuleType) -> set[str]:
    """Return the public names that a module has from other modules of ours."""
    return {
        alias.asname or alias.name
        for statement in ast.parse(inspect.getsource(module)).body
        if isinstance(statement, ast.ImportFrom)
        and (statement.level or str(statement.module).startswith("django_asyncbridge"))
        for alias in statement.names
        if not (alias.asname or alias.name).startswith("_")
    }


@pytest.mark.parametrize("module_name", bridge_files())
def test_surface_all_of_module_is_a_tuple_of_what_it_defines_and_passes_on(
    module_name: str,
) -> None:
    module = importlib.import_module(module_name)
    exported = getattr(module, "__all__", None)
    assert isinstance(exported, tuple)
    assert len(set(exported)) == len(exported)
    assert [name for name in exported if not hasattr(module, name)] == []
    own = own_names(module)
    assert own <= set(exported)
    if not own:  # a module that only passes on what others define
        assert {name for name in exported if not is_magic(name)} == passed_on_names(module)


# --- The comparison itself -------------------------------------------------


class Reference:
    """Stands for a class of asgiref."""

    value = 1

    def __init__(self, one: int, two: int = 2) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None: ...

    def send(self, message: object) -> None: ...

    async def wait(self, timeout: int = 1) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @property
    def ready(self) -> None: ...


class Compatible(Reference):
    """Has it all, and more."""

    def __exit__(self, a: object, b: object, c: object) -> None: ...

    async def wait(self, timeout: int = 1, *, quietly: bool = False) -> None: ...

    ready = None


class Incompatible:
    """Has each thing wrong."""

    def __init__(self, first: int, two: int = 2) -> None: ...

    def __enter__(self) -> None: ...

    def send(self, message: object, more: object) -> None: ...

    def wait(self, timeout: int = 1) -> None: ...

    def make(self) -> None: ...

    def ready(self) -> None: ...


def test_surface_comparison_of_compatible_class_finds_nothing() -> None:
    assert list(compare("C", Reference, Compatible)) == []


def test_surface_comparison_of_incompatible_class_finds_each_difference() -> None:
    found = list(compare("C", Reference, Incompatible))
    assert [line.split(":")[0] for line in found] == [
        "C.value",
        "C.__init__",
        "C.__exit__",
        "C.send",
        "C.wait",
        "C.make",
        "C.ready",
    ]
