"""Check of the project's ``asgi.py``: does it still use Django's handler?

The module is not imported, only the package it is in. Checks run before most commands, and an ``asgi.py`` may do anything: set up logging again (Django's
``get_asgi_application`` does), start an agent's threads before the test runner forks, load every consumer. Its source says which handler it calls,
wherever in the module, also inside of a router. A module that some other code has imported is looked at as well: the handler may have been
made elsewhere.
"""

import ast
import importlib.util
import sys

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004  # Django's name for it
from django.core.handlers.asgi import ASGIHandler

__all__ = ("check_asgi_application",)

_DJANGOS = frozenset(
    {"django.core.asgi.get_asgi_application", "django.core.handlers.asgi.ASGIHandler"}
)


def check_asgi_application(**_kwargs: object) -> list[CheckMessage]:
    """Return W007: ``ASGI_APPLICATION``, or else the ``asgi.py`` beside the URL conf, is served by Django's handler."""
    name = _module_name()
    if name is None or not (_has_djangos_handler(name) or _calls_djangos_handler(name)):
        return []
    return [
        Warning(
            f"The module '{name}' uses Django's own ASGI handler: when all request threads are busy, it answers 500 where "
            "that of django-asyncbridge answers 503, and its log does not name the requests that have the threads.",
            hint=(
                f'Write "from django_asyncbridge.asgi import get_asgi_application" in {name} '
                'instead of "from django.core.asgi import get_asgi_application".'
            ),
            obj=name,
            id="asyncbridge.W007",
        )
    ]


def _module_name() -> str | None:
    """Return where the project's application is: where the setting says, else where ``startproject`` puts it."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if isinstance(path, str):
        return path.rpartition(".")[0] or None
    package = str(getattr(settings, "ROOT_URLCONF", None)).rpartition(".")[0]
    return f"{package}.asgi" if package else None


def _has_djangos_handler(name: str) -> bool:
    """Tell whether the module is there and holds a handler of Django's, not of a subclass."""
    module = sys.modules.get(name)
    return any(
        type(value) is ASGIHandler for value in list(vars(module).values() if module else ())
    )


def _calls_djangos_handler(name: str) -> bool:
    """Tell whether the module's source makes a handler of Django's."""
    try:
        spec = importlib.util.find_spec(name)
        source = spec.loader.get_source(name) if spec else ""  # type: ignore[union-attr]  # or the error is caught
        tree = ast.parse(source)
    except Exception:  # noqa: BLE001  # no source that can be read: whoever serves it says so
        return False
    names = _imported_names(tree)
    return any(
        isinstance(node, ast.Call) and _full_name(node.func, names) in _DJANGOS
        for node in ast.walk(tree)
    )


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return what the names that are imported "from" somewhere stand for, as dotted paths."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bound = alias.asname or alias.name
                # "try" ours, "except ImportError" Django's: ours it is.
                if not names.get(bound, "").startswith("django_asyncbridge."):
                    names[bound] = f"{node.module}.{alias.name}"
    return names


def _full_name(function: ast.expr, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(function).partition(".")
    return names.get(first, first) + dot + rest
