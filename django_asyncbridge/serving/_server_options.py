"""Options as text, read as a server's constructor takes them.

Hard rules. A value stays text unless the constructor itself says otherwise. A name that the constructor does not have is never passed on,
unless it takes any.

Which thread may touch what. Nothing is kept here; any thread may call it.
"""

import difflib
import inspect
import types
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from django_asyncbridge.serving.errors import (
    OptionError,
    ServerClassError,
    ServingError,
    in_one_line,
)

__all__ = ("make_server",)


def make_server(cls: type[Any], application: Any, options: Iterable[str]) -> Any:
    """Make a server of a class that `import_server` has returned.

    Args:
        cls: the class. The parameters of its constructor are its options; if that takes keyword arguments of any name
            (``**options``), so are those of the base classes, and any other name too.
        application: for the parameter ``application``.
        options: each ``key=value``. The value stays text, unless the parameter's annotation, or else its default, says int,
            float, bool (true or false), or a list (separated by commas; of text, unless it says of what).

    Raises:
        OptionError: an option is not in that form, is given twice, unknown or missing, or its value does not fit.
        ServerClassError: the constructor takes no application, or it raised; then that is the error's ``__cause__``.
        ServingError: the constructor raised one itself.
    """
    constructor = _constructor_of(cls)
    if "application" not in constructor.parameters:
        raise ServerClassError(
            f"{cls.__name__} takes no application; give its constructor a parameter of that name."
        )
    arguments = _arguments(constructor, options)
    try:
        return cls(application=application, **arguments)
    except ServingError:
        # It says already what to do.
        raise
    except Exception as error:
        raise ServerClassError(f"{cls.__name__} cannot be made: {in_one_line(error)}") from error


class _Kind(NamedTuple):
    """How a value is read from text: what it is, for a sentence; and a function that raises ValueError for text that is none."""

    wanted: str
    read: Callable[[str], object]


class _Constructor(NamedTuple):
    """What a class is made with.

    Attributes:
        name: of the class.
        parameters: those that can be given by name, and how each is read.
        required: the names of those that have to be given.
        is_open: whether any other name may be given as well.
    """

    name: str
    parameters: Mapping[str, _Kind]
    required: Collection[str]
    is_open: bool


def _arguments(constructor: _Constructor, options: Iterable[str]) -> dict[str, object]:
    """Return the keyword arguments that options stand for."""
    arguments: dict[str, object] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise OptionError(
                f"--option {option}: write key=value, for example --option max_applications=100."
            )
        if key in arguments:
            raise OptionError(f"--option {key} is given twice; a list is separated by commas.")
        arguments[key] = _value(constructor, key, value)
    missing = [name for name in constructor.required if name not in arguments]
    if missing:
        wanted = [
            f"--option {name}=... ({constructor.parameters[name].wanted})" for name in missing
        ]
        raise OptionError(f"{constructor.name} also needs {' and '.join(wanted)}.")
    return arguments


def _value(constructor: _Constructor, key: str, value: str) -> object:
    """Return the value of one option as the constructor takes it."""
    if key == "application":
        raise OptionError("--option application: it is --app that names the application.")
    if key not in constructor.parameters and not constructor.is_open:
        known = sorted(set(constructor.parameters) - {"application"})
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known) or 'none'}."
        raise OptionError(f"{constructor.name} has no option {key!r}; {hint}")
    kind = constructor.parameters.get(key, _TEXT)
    try:
        return kind.read(value)
    except ValueError as error:
        text = f"--option {key}={value}: {constructor.name} takes {kind.wanted} there."
        raise OptionError(text) from error


def _constructor_of(cls: type) -> _Constructor:
    """Read a class's constructor, and those of its bases that it hands keyword arguments on to."""
    parameters: dict[str, _Kind] = {}
    required: list[str] | None = None
    is_open = False
    inits = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    for init in inits:  # pragma: no branch  # StatelessServer's own is the last that is read
        own = list(inspect.signature(init).parameters.values())[1:]
        named = [one for one in own if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        parameters = {one.name: _kind_of_parameter(one, init) for one in named} | parameters
        hands_on = any(one.kind is one.VAR_KEYWORD for one in own)
        if required is None:  # what a base needs may come from the class itself
            needed = [one.name for one in named if one.default is one.empty]
            required = [name for name in needed if name != "application"]
            is_open = hands_on
        if not hands_on:
            break
    return _Constructor(cls.__name__, parameters, required or (), is_open)


def _switch(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(text)


_TEXT = _Kind("text", str)
_KINDS: dict[Any, _Kind] = {
    str: _TEXT,
    int: _Kind("a whole number", int),
    float: _Kind("a number", float),
    bool: _Kind("true or false", _switch),
}
_LISTS: dict[Any, Callable[[Iterable[object]], object]] = {
    **{kind: kind for kind in (list, tuple, set, frozenset)},
    **dict.fromkeys((abc.Iterable, abc.Collection, abc.Sequence, abc.MutableSequence), list),
}


def _kind_of_parameter(parameter: inspect.Parameter, init: Any) -> _Kind:
    return _kind_of(_hint_of(parameter, init)) or _kind_of(type(parameter.default)) or _TEXT


def _hint_of(parameter: inspect.Parameter, init: Any) -> Any:
    """Return a parameter's annotation, also where it was written as text; None if that means nothing here."""
    # One at a time: a name that is only there for type checkers must not hide the others.
    one = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(one, getattr(inspect.unwrap(init), "__globals__", {}))[parameter.name]
    except Exception:  # noqa: BLE001  # whatever an annotation does
        return None


def _kind_of(hint: Any) -> _Kind | None:
    """Return how to read a value of a type; None for a type that has no text."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_kind_of(part) for part in get_args(hint) if part is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else None
    container = get_origin(hint) or hint
    if not isinstance(container, type):
        return None
    if container not in _LISTS:
        return _KINDS.get(container)
    item, *others = get_args(hint) or (str,)
    # A tuple of several types is no list.
    return None if others not in ([], [...]) else _list_of(_kind_of(item) or _TEXT, container)


def _list_of(item: _Kind, container: type) -> _Kind:
    def read(text: str) -> object:
        parts = [part.strip() for part in text.split(",")]
        return _LISTS[container]([item.read(part) for part in parts if part])

    return _Kind(f"a list, separated by commas, each {item.wanted}", read)
