"""Checks of ``LIFESPAN`` and ``WEBSOCKET_APPLICATION``: are the paths there, and do they name what is asked for?

What they name is imported and looked at, but not called. An ``asgi.py`` is not imported: importing it makes a handler and sets Django up again,
and checks run before most commands. Its source tells whether the name is there, and of the common mistake, an async
function without its decorator. What it cannot tell, start-up says.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string

from django_asyncbridge import _servable, conf
from django_asyncbridge._servable import Refusal

__all__ = ("check_lifespan", "check_websocket_application")


def check_lifespan(**_kwargs: object) -> list[CheckMessage]:
    """Return E007 or E008: what ``LIFESPAN`` names cannot be imported, or is no async context manager function."""
    path = conf.usable().lifespan
    return _check(_servable.LIFESPAN, path, _servable.lifespan_refusal, "E008")


def check_websocket_application(**_kwargs: object) -> list[CheckMessage]:
    """Return E007 or E009: what ``WEBSOCKET_APPLICATION`` names cannot be imported, or is no application for WebSockets."""
    path = conf.usable().websocket_application
    return _check(_servable.WEBSOCKET_APPLICATION, path, _servable.websocket_refusal, "E009")


def _check(
    setting: str,
    path: str | None,
    refusal_of: Callable[[object], Refusal | None],
    number: str,
) -> list[CheckMessage]:
    if path is None:
        return []
    module = path.rpartition(".")[0]
    try:
        if _is_entry(module) and module not in sys.modules:
            plain = _is_plain_in_source(path)
            refusal = _servable.UNDECORATED if plain and setting == _servable.LIFESPAN else None
        else:
            refusal = refusal_of(import_string(path))
    except Exception as error:  # noqa: BLE001  # a module may raise anything
        number, problem = "E007", f"cannot be imported: {type(error).__name__}: {error}"
        refusal = Refusal(problem.rstrip("."), _CORRECT_IT)
    return [_error(setting, path, refusal, number)] if refusal else []


_CORRECT_IT = "Correct the path, or what the module does; or remove the key."


def _error(setting: str, path: str, refusal: Refusal, number: str) -> CheckMessage:
    message = f'{setting} names "{path}", which {refusal.problem}.'
    return Error(message, hint=refusal.hint, obj=path, id=f"asyncbridge.{number}")


# --- An asgi.py, from its source -----------------------------------------------------------


def _is_entry(module: str) -> bool:
    """Tell whether a module is where the project's ASGI application is made."""
    served = str(getattr(settings, "ASGI_APPLICATION", None)).rpartition(".")[0]
    return module == served or module.rpartition(".")[2] == "asgi"


def _is_plain_in_source(path: str) -> bool:
    """Tell whether a path names an async function without decorators, as far as the source tells.

    Raises:
        ImportError: the module or the name is not there.
        SyntaxError: of the source.
    """
    module, _, name = path.rpartition(".")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"there is no module '{module}'")
    source = getattr(spec.loader, "get_source", lambda _: None)(module)
    if source is None:
        return False
    tree = ast.parse(source)
    names = _names(tree)
    if name not in names and "*" not in names:
        raise ImportError(f"the module '{module}' has no '{name}'")
    # A name that is given twice may have been decorated by a call.
    return names.count(name) == 1 and any(
        isinstance(node, ast.AsyncFunctionDef) and node.name == name and not node.decorator_list
        for node in tree.body
    )


def _names(tree: ast.Module) -> list[str]:
    """Return each name as often as it is given, anywhere in a module: too many rather than too few."""
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.Name(id=name, ctx=ast.Store())
            ):
                names.append(name)
            case ast.alias():
                names.append((node.asname or node.name).partition(".")[0])
    return names
