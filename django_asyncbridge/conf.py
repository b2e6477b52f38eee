"""The setting ``ASYNCBRIDGE``: names, types and defaults. The only module that reads Django's settings for the app.

`parse` is the whole rule, a pure function: every wrong value becomes a `Problem` and counts as absent, so that checks can
name all of them at once. `current` is what the rest of the app asks; there a problem is an error. The view of the settings is
frozen, and kept until the setting is another object (``override_settings``).

Which thread may touch what. Any thread may call `current`; two that come first at once both parse, and get equal views.
"""

import difflib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

__all__ = (
    "Conf",
    "ExecutorConf",
    "Problem",
    "RequestThreads",
    "current",
    "on_change",
    "parse",
    "require_app",
    "usable",
)

_NAME = "ASYNCBRIDGE"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the setting.

    Attributes:
        path: where, as ``ASYNCBRIDGE["REQUEST_THREADS"]["MAX"]``.
        message: what was found.
        hint: what to do.
        unknown: whether it is a key that does not exist; otherwise a value is wrong.
    """

    path: str
    message: str
    hint: str
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class RequestThreads:
    """``REQUEST_THREADS``: the workers that requests are served in.

    Attributes:
        maximum: how many there may be, and so how many database connections; None for any number.
        idle_seconds: how long one is kept that nobody needs; None for ever.
        wait_seconds: how long a request waits for one before it is answered 503; None for ever.
    """

    maximum: int | None = None
    idle_seconds: float | None = 60.0
    wait_seconds: float | None = 10.0


@dataclass(frozen=True, slots=True)
class ExecutorConf:
    """One of ``EXECUTORS``.

    Attributes:
        backend: dotted path of an ``Executor`` class; None for the bridge's own `WorkerPool`.
        max_workers: how many threads or processes; None for the backend's own default.
        options: further keyword arguments of the backend, by name.
    """

    backend: str | None = None
    max_workers: int | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_DEFAULT_EXECUTOR = ExecutorConf(max_workers=32)


@dataclass(frozen=True, slots=True)
class Conf:
    """The settings of the app, checked and complete.

    Attributes:
        request_threads: the workers that requests are served in.
        executors: by alias; "default" is always there.
        accelerate_django: whether Django's own calls run on the bridge's classes.
        async_safe: dotted paths of callables that never block.
        lifespan: dotted path of the async context manager function that runs around serving; None for none.
        websocket_application: dotted path of the ASGI application for WebSockets; None to refuse them.
    """

    request_threads: RequestThreads = field(default_factory=RequestThreads)
    executors: Mapping[str, ExecutorConf] = field(
        default_factory=lambda: MappingProxyType({"default": _DEFAULT_EXECUTOR})
    )
    accelerate_django: bool = True
    async_safe: tuple[str, ...] = ()
    lifespan: str | None = None
    websocket_application: str | None = None

    def in_words(self) -> str:
        """Return what a server says of the settings in one line when it starts."""
        maximum = self.request_threads.maximum
        executors = (
            name if one.max_workers is None else f"{name} ({one.max_workers})"
            for name, one in self.executors.items()
        )
        return "; ".join(
            [
                f"request threads: {'any number' if maximum is None else f'at most {maximum}'}",
                f"executors: {', '.join(executors)}",
                f"Django's own calls: {'accelerated' if self.accelerate_django else 'as they are'}",
                f"lifespan: {self.lifespan or 'none'}",
                f"WebSockets: {self.websocket_application or 'refused'}",
            ]
        )


# --- Reading ---------------------------------------------------------------------


def parse(raw: object) -> tuple[Conf, list[Problem]]:
    """Return what the setting says, wrong values left out, and what is wrong with it.

    Args:
        raw: the value of ``settings.ASYNCBRIDGE``; None if there is none.
    """
    problems: list[Problem] = []
    fields = _read_dict(raw, _NAME, _KEYS, problems)
    return Conf(**fields), problems


class _Wrong(Exception):  # noqa: N818  # it never leaves this module
    """A value is wrong; says what is expected."""


_Reader = Callable[[Any, str, list[Problem]], Any]


def _read_dict(
    raw: object, path: str, keys: Mapping[str, tuple[str, _Reader]], problems: list[Problem]
) -> dict[str, Any]:
    """Return the fields that the keys of a dict stand for."""
    fields: dict[str, Any] = {}
    if raw is None:
        return fields
    if not isinstance(raw, Mapping):
        problems.append(Problem(path, f"is {raw!r}, not a dict", "Make it a dict."))
        return fields
    for key, value in raw.items():
        if key not in keys:
            problems.append(_unknown(path, key, keys))
            continue
        name, read = keys[key]
        inner = f"{path}[{key!r}]".replace("'", '"')
        try:
            fields[name] = read(value, inner, problems)
        except _Wrong as wrong:
            problems.append(Problem(inner, f"is {value!r}", f"It has to be {wrong}."))
    return fields


def _unknown(path: str, key: object, keys: Mapping[str, Any]) -> Problem:
    near = difflib.get_close_matches(str(key).upper(), keys, 1, 0.5)
    known = ", ".join(f'"{one}"' for one in keys)
    hint = f'Did you mean "{near[0]}"?' if near else f"There are: {known}."
    return Problem(path, f"has the unknown key {key!r}", hint, unknown=True)


def _count(value: Any, path: str, problems: list[Problem]) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise _Wrong("a whole number above 0, or None")


def _seconds(value: Any, path: str, problems: list[Problem]) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= threading.TIMEOUT_MAX:
        return float(value)
    raise _Wrong("a number of seconds, 0 or more, or None for no limit")


def _flag(value: Any, path: str, problems: list[Problem]) -> bool:
    if isinstance(value, bool):
        return value
    raise _Wrong("True or False")


def _dotted(value: Any, path: str, problems: list[Problem]) -> str:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        return str(value)
    raise _Wrong('a dotted path as "package.module.Name"')


def _dotted_or_none(value: Any, path: str, problems: list[Problem]) -> str | None:
    try:
        return None if value is None else _dotted(value, path, problems)
    except _Wrong as wrong:
        raise _Wrong(f"{wrong}, or None") from None


def _dotted_names(value: Any, path: str, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise _Wrong("a list of dotted paths")
    names = []
    for one in value:
        try:
            names.append(_dotted(one, path, problems))
        except _Wrong as wrong:
            problems.append(Problem(path, f"contains {one!r}", f"Each has to be {wrong}."))
    return tuple(names)


def _options(value: Any, path: str, problems: list[Problem]) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return MappingProxyType(dict(value))
    raise _Wrong("a dict of keyword arguments")


def _request_threads(value: Any, path: str, problems: list[Problem]) -> RequestThreads:
    return RequestThreads(**_read_dict(value, path, _REQUEST_THREADS_KEYS, problems))


def _executors(value: Any, path: str, problems: list[Problem]) -> Mapping[str, ExecutorConf]:
    if not isinstance(value, Mapping) or not all(key and isinstance(key, str) for key in value):
        raise _Wrong("a dict of dicts by alias")
    executors = {"default": _DEFAULT_EXECUTOR}
    for alias, raw in value.items():
        inner = f'{path}["{alias}"]'
        fields = _read_dict(raw, inner, _EXECUTOR_KEYS, problems)
        if alias == "default":
            fields = {"max_workers": _DEFAULT_EXECUTOR.max_workers, **fields}
            if fields.pop("backend", None) is not None:
                hint = (
                    "The bridge's own workers are the default; give another backend another alias."
                )
                problems.append(Problem(inner, "names a BACKEND", hint))
        executors[alias] = ExecutorConf(**fields)
    return MappingProxyType(executors)


_REQUEST_THREADS_KEYS: Mapping[str, tuple[str, _Reader]] = {
    "MAX": ("maximum", _count),
    "IDLE_SECONDS": ("idle_seconds", _seconds),
    "WAIT_SECONDS": ("wait_seconds", _seconds),
}
_EXECUTOR_KEYS: Mapping[str, tuple[str, _Reader]] = {
    "BACKEND": ("backend", _dotted),
    "MAX_WORKERS": ("max_workers", _count),
    "OPTIONS": ("options", _options),
}
_KEYS: Mapping[str, tuple[str, _Reader]] = {
    "REQUEST_THREADS": ("request_threads", _request_threads),
    "EXECUTORS": ("executors", _executors),
    "ACCELERATE_DJANGO": ("accelerate_django", _flag),
    "ASYNC_SAFE": ("async_safe", _dotted_names),
    "LIFESPAN": ("lifespan", _dotted_or_none),
    "WEBSOCKET_APPLICATION": ("websocket_application", _dotted_or_none),
}


# --- Now ---------------------------------------------------------------------------

# The value of the setting that was read last, and what it says. One object, so that no thread sees half of another's.
_current: tuple[object, Conf] | None = None
_listeners: list[Callable[[], None]] = []


def current() -> Conf:
    """Return the settings of the app.

    Raises:
        ImproperlyConfigured: naming everything that is wrong with them.
    """
    global _current
    raw = getattr(settings, _NAME, None)
    known = _current
    if known is None or known[0] is not raw:
        conf, problems = parse(raw)
        if problems:
            raise ImproperlyConfigured(
                " ".join(f"{one.path} {one.message}: {one.hint}" for one in problems)
            )
        _current = known = (raw, conf)
    return known[1]


def usable() -> Conf:
    """Return what is right of the settings; for start-up, where system checks tell of the rest."""
    return parse(getattr(settings, _NAME, None))[0]


def require_app(what: str) -> None:
    """Raise an error if the app is not installed: Django's own calls would then run apart, in other threads and transactions.

    Args:
        what: needs it, for the message.

    Raises:
        ImproperlyConfigured: if so.
    """
    if not apps.is_installed("django_asyncbridge"):
        raise ImproperlyConfigured(
            f"{what} needs the app, since without it Django's own calls run in other threads, outside of its transactions: "
            'add "django_asyncbridge" to INSTALLED_APPS'
        )


def on_change(listener: Callable[[], None]) -> None:
    """Call `listener` whenever the setting has changed (tests), in the thread that changed it."""
    _listeners.append(listener)


def _tell(*, setting: str, **_kwargs: object) -> None:
    if setting == _NAME:
        for listener in _listeners:
            listener()


setting_changed.connect(_tell, dispatch_uid="django_asyncbridge.conf")
