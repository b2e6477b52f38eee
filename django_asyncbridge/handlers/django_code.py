"""Telling Django's own code from code that has its name: overridden, wrapped, patched.

What is known of a piece of code holds for that code alone. A function is known by the code it runs and the namespace it runs in, which
`functools.wraps` and mocks do not copy; a class by its functions, and by what its subclasses and objects put in their place.

Hard rules. In doubt code is foreign. Nothing is imported, and no property is asked for its value.

Which thread may touch what. Any thread may ask; nothing is kept.
"""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import cached_property

__all__ = ("ancestors", "class_of", "find_loaded", "is_djangos", "overrides_nothing", "path_of")

# The class that an object has, not the one that a lazy object claims to have, for which it would be loaded.
class_of: Callable[[object], Any] = type

# What each class has for itself, and what runs only while an object is made.
_OWN_TO_EACH = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
        *("__firstlineno__", "__static_attributes__", "__init__"),
    }
)
_INTERCEPTORS = frozenset({"__getattribute__", "__getattr__", "__setattr__"})


def path_of(function: object) -> str:
    """Return the module and the qualified name with which a function's code was defined, "" for anything else."""
    if not isinstance(function, types.FunctionType):
        return ""
    module = function.__globals__.get("__name__", "")
    if function.__globals__ is not getattr(sys.modules.get(module), "__dict__", None):
        return ""
    return f"{module}.{function.__code__.co_qualname}"


def ancestors(cls: type) -> Iterator[tuple[str, type]]:
    """Yield a class and its bases, nearest first, each with its dotted path."""
    for base in cls.__mro__:
        yield f"{base.__module__}.{base.__qualname__}", base


def find_loaded(path: str) -> Any:
    """Return what a dotted path names, None unless that needs neither the disk nor another thread's import."""
    module_path, _, name = path.rpartition(".")
    module = sys.modules.get(module_path)
    if getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return getattr(module, "__dict__", {}).get(name)


def is_djangos(method: types.MethodType) -> bool:
    """Tell whether neither the object nor its class changes anything that a method of Django's may call on it."""
    owner, function = type(method.__self__), method.__func__
    for base in owner.__mro__:
        if vars(base).get(function.__name__) is function:
            return overrides_nothing(owner, base) and not any(
                name in vars(method.__self__) and not isinstance(value, cached_property)
                for name, value in _attributes(base).items()
                if _is_code(value)
            )
    return False


def overrides_nothing(cls: type, known: type, allowed: frozenset[str] = frozenset()) -> bool:
    """Tell whether a class runs the code of one of Django's, as Django defined it; initializers apart.

    Args:
        cls: the class.
        known: the class itself, or one of its bases.
        allowed: what a subclass may override nevertheless.
    """
    own = _attributes(known)
    added = cls.__mro__[: cls.__mro__.index(known)]
    return all(map(_is_original, own.values())) and not any(
        name in _INTERCEPTORS or (name in own and _differs(own[name], value))
        for base in added
        for name, value in vars(base).items()
        if name not in allowed
    )


def _attributes(known: type) -> dict[str, Any]:
    inherited = [base for base in known.__mro__ if base not in (MiddlewareMixin, object)]
    return {
        name: value
        for base in reversed(inherited)
        for name, value in vars(base).items()
        if name not in _OWN_TO_EACH
    }


def _differs(original: object, value: object) -> bool:
    if isinstance(value, type) and value.__module__ == "django.http.response":
        # One of Django's responses for another: `response_redirect_class` is there to be replaced.
        return False
    return _is_code(original) or _is_code(value)


def _is_code(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_code, value))
    return callable(value) or hasattr(value, "__get__")


def _is_original(value: Any) -> bool:
    """Tell whether an attribute of one of Django's classes is data, or code that Django defined itself."""
    if isinstance(value, tuple):
        return all(map(_is_original, value))
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    if isinstance(value, type):
        return value.__module__.startswith("django.")
    return path_of(value).startswith("django.") or not _is_code(value)
