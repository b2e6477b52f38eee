"""What an entry of ``ASYNCBRIDGE["EXECUTORS"]`` means: which class, with which arguments, and what is wrong with it.

`builder` reads an entry and imports its class; what it returns makes the executor. `problems` does the same short of that, for system
checks: no thread and no process is started. Any thread may call what is here.
"""

import functools
import inspect
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

import django
from django.utils.module_loading import import_string

from django_asyncbridge import request_threads
from django_asyncbridge.bridge import _processes
from django_asyncbridge.bridge.sync import WorkerPool
from django_asyncbridge.conf import ExecutorConf

__all__ = ("BackendError", "builder", "described", "problems")

_OWN_OPTIONS = ("idle_seconds", "wait_seconds")


class BackendError(Exception):
    """The executor cannot be built; the message says why."""


def described(settings: ExecutorConf) -> str:
    """Return the dotted path of the class."""
    return settings.backend or f"{WorkerPool.__module__}.{WorkerPool.__qualname__}"


def builder(alias: str, settings: ExecutorConf) -> functools.partial[Executor]:
    """Return what makes the executor, and raises `BackendError` if its class refuses.

    Raises:
        BackendError: if there is no such class, or it does not take these arguments.
    """
    backend = WorkerPool if settings.backend is None else _import(settings.backend)
    if issubclass(backend, WorkerPool):
        return functools.partial(_make, backend, (alias,), _own_arguments(settings))
    arguments = _arguments(alias, backend, settings)
    try:
        _signature(backend).bind(**arguments)
    except TypeError as error:
        raise BackendError(f"{settings.backend} does not take its arguments: {error}") from error
    return functools.partial(_make, backend, (), arguments)


def problems(alias: str, settings: ExecutorConf) -> list[str]:
    """Return why an executor cannot be built; empty if nothing is known against it. Starts no thread and no process."""
    try:
        build = builder(alias, settings)
        if build.args[0] in (WorkerPool, ThreadPoolExecutor):
            # These start nothing before their first call. What others do is not known.
            build()
    except BackendError as error:
        return [str(error)]
    return []


def _make(
    backend: Callable[..., Executor], names: tuple[str, ...], arguments: dict[str, Any]
) -> Executor:
    try:
        return backend(*names, **arguments)
    except Exception as error:
        raise BackendError(f"{backend.__qualname__} refused its arguments: {error}") from error


def _own_arguments(settings: ExecutorConf) -> dict[str, Any]:
    unknown = ", ".join(repr(name) for name in settings.options if name not in _OWN_OPTIONS)
    if unknown:
        known = " and ".join(f'"{name}"' for name in _OWN_OPTIONS)
        raise BackendError(f"OPTIONS has {unknown}, but the bridge's own pool has only {known}")
    return {
        "on_lend": request_threads.close_broken_connections,
        "on_hand_over": request_threads.look_after_connections,
        "on_retire": request_threads.close_connections,
        **settings.options,
        "maximum": settings.max_workers,
    }


def _import(path: str) -> type[Executor]:
    try:
        backend = import_string(path)
    except Exception as error:
        raise BackendError(
            f"BACKEND {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Executor)):
        raise BackendError(f"BACKEND {path!r} is no subclass of concurrent.futures.Executor")
    if backend.submit is Executor.submit:
        raise BackendError(f"BACKEND {path!r} runs nothing: it has no submit() of its own")
    return backend


def _arguments(alias: str, backend: type[Executor], settings: ExecutorConf) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if settings.max_workers is not None:
        arguments["max_workers"] = settings.max_workers
    if issubclass(backend, ThreadPoolExecutor) and _takes(backend, "thread_name_prefix"):
        arguments["thread_name_prefix"] = f"asyncbridge-{alias}"
    if _processes.is_process_pool_class(backend):
        # Forking a process that has threads leaves their locks locked in the child.
        defaults = {"mp_context": "spawn", "initializer": _set_up_process}
        arguments |= {name: one for name, one in defaults.items() if _takes(backend, name)}
    arguments |= settings.options
    if isinstance(arguments.get("mp_context"), str):
        arguments["mp_context"] = _context(arguments["mp_context"])
    return arguments


def _signature(backend: type[Executor]) -> inspect.Signature:
    try:
        return inspect.signature(backend)
    except ValueError:
        # Written in C, some do not tell what they take.
        return inspect.signature(lambda **_: None)


def _takes(backend: type[Executor], name: str) -> bool:
    parameters = _signature(backend).parameters
    return name in parameters or any(
        one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()
    )


def _context(name: str) -> BaseContext:
    try:
        return multiprocessing.get_context(name)
    except ValueError as error:
        known = ", ".join(f'"{one}"' for one in multiprocessing.get_all_start_methods())
        raise BackendError(f'OPTIONS["mp_context"] is {name!r}; there are: {known}') from error


def _set_up_process() -> None:
    """Make a new process of a pool one of the project's; there."""
    # Ctrl-C reaches all processes of a terminal; the one that has the pool ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    django.setup()
    _processes.set_before_call(request_threads.close_broken_connections)
    _processes.set_after_call(request_threads.look_after_connections)
