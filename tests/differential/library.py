"""One of the two libraries as scenarios see it, and what scenarios are made of."""

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = (
    "LIBRARIES",
    "Library",
    "Scenario",
    "Table",
    "async_error_of",
    "error_of",
    "load",
    "name_of",
)

LIBRARIES = {"asgiref": "asgiref", "ours": "django_asyncbridge.bridge"}


@dataclass(frozen=True)
class Library:
    """The names of a library that a scenario may use.

    Their types say next to nothing: a scenario does the same with both libraries, and also what types refuse.
    """

    sync_to_async: Callable[..., Callable[..., Any]]
    async_to_sync: Callable[..., Callable[..., Any]]
    SyncToAsync: Any
    AsyncToSync: Any
    ThreadSensitiveContext: Any
    AsyncSingleThreadContext: Any
    iscoroutinefunction: Any
    markcoroutinefunction: Any
    Local: Any
    CurrentThreadExecutor: Any


def load(name: str) -> Library:
    """Import one of the libraries."""
    package = LIBRARIES[name]
    modules = [
        importlib.import_module(f"{package}.{module}")
        for module in ("sync", "local", "current_thread_executor")
    ]
    found = {}
    for field in Library.__dataclass_fields__:
        found[field] = next(getattr(module, field) for module in modules if hasattr(module, field))
    return Library(**found)


Scenario = Callable[[Library], object]


class Table(dict[str, Scenario]):
    """Scenarios by name, filled by decorating functions.

    Args:
        group: the first part of each name.
    """

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group

    def add(self, scenario: Scenario) -> Scenario:
        """Put a function into the table under its own name."""
        self[f"{self.group}/{scenario.__name__}"] = scenario
        return scenario


def name_of(error: BaseException) -> str:
    """Return the name of an error's class; for one of the libraries' own, that of the class it is made from.

    Whoever catches the latter catches both.
    """
    packages = {package.partition(".")[0] for package in LIBRARIES.values()}
    classes = type(error).__mro__
    return next(cls.__name__ for cls in classes if cls.__module__.partition(".")[0] not in packages)


def error_of(function: Callable[..., object], *args: object, **kwargs: object) -> str:
    """Call, and return the name of the error's class, or "none"."""
    try:
        function(*args, **kwargs)
    except BaseException as error:
        return name_of(error)
    return "none"


async def async_error_of(awaitable: Awaitable[object]) -> str:
    """Await, and return the name of the error's class, or "none"."""
    try:
        await awaitable
    except BaseException as error:
        return name_of(error)
    return "none"
