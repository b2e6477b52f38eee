"""`Mounts`: other applications below a path of the site, each under its prefix.

ASGI's ``path`` is whole, and ``root_path`` says which part of it the application is mounted at. So a mounted application gets the same path,
and a root path that is longer by its prefix; what it takes as its own address is the rest. Prefixes are compared at slashes: "/old" has
"/old" and "/old/x", never "/older". They are relative to the root path that the mounts themselves have. Where a server sends a path without its root
path, the mounted application gets it whole, for it could not tell any more where its own part begins.

Which thread may touch what. An object is not changed after its creation; any number of event loops may call it.

Source: ASGI specification, "HTTP & WebSocket ASGI Message Format", ``path``, ``raw_path`` and ``root_path``.
"""

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django_asyncbridge._servable import application_refusal
from django_asyncbridge.bridge.compatibility import guarantee_single_callable

__all__ = ("Mounts",)

_Application = Callable[..., Any]


class Mounts:
    """An ASGI application that hands requests on to others, by the prefix of their path.

    For example, an old WSGI site below "/old", and Django for the rest::

        application = Mounts(
            {"/old": WsgiToAsgi(old_site)},
            default=get_asgi_application(),
        )

    HTTP requests and WebSockets below a prefix go to its application; the longest prefix wins. Everything else goes to the default
    application as it came, also lifespan: a mounted application is neither started nor stopped.

    Args:
        mounts: ASGI applications by prefix. A prefix is decoded, as paths in scopes are, begins with a slash and ends without.
        default: the ASGI application for the rest.

    Raises:
        ValueError: a prefix is no such path.
        TypeError: something is no ASGI application.
    """

    def __init__(self, mounts: Mapping[str, _Application], *, default: _Application) -> None:
        self._default = _application("The default application", default)
        self._mounts = {
            _checked(prefix): _application(f"What is mounted at {prefix!r}", mounts[prefix])
            for prefix in sorted(mounts, key=lambda one: len(str(one)), reverse=True)
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand one scope on. Runs the application in the caller's task; what it raises is raised.

        Args:
            scope: of any type.
            receive: handed on.
            send: handed on.
        """
        application = self._default
        if scope["type"] in ("http", "websocket"):
            root, path = _split(scope)
            for prefix, mounted in self._mounts.items():
                if _is_below(prefix, path):
                    application, scope = mounted, _mounted_scope(scope, root, path, prefix)
                    break
        await application(scope, receive, send)


def _checked(prefix: object) -> str:
    """Return a prefix that is one.

    Raises:
        ValueError: it is not.
    """
    example = 'write it as "/old" or "/old/shop"'
    if not isinstance(prefix, str):
        raise ValueError(f"The prefix {prefix!r} is no str; {example}.")  # noqa: TRY004  # as for the others
    if prefix in ("", "/"):
        raise ValueError(f"The prefix {prefix!r} has every path; give that application as default.")
    if not prefix.startswith("/"):
        raise ValueError(f"The prefix {prefix!r} does not begin with a slash; {example}.")
    if prefix.endswith("/"):
        raise ValueError(f"The prefix {prefix!r} ends with a slash; {example}.")
    return prefix


def _application(what: str, application: _Application) -> Callable[..., Awaitable[Any]]:
    refusal = application_refusal(application)
    if refusal is not None:
        raise TypeError(f"{what} {refusal.problem}. {refusal.hint}")
    return guarantee_single_callable(application)


def _split(scope: Mapping[str, Any]) -> tuple[str, str]:
    """Divide a path into the root path of the mounts, and the rest.

    A path outside of the root path is one that a server has sent without it.
    """
    root = (scope.get("root_path") or "").rstrip("/")
    path = scope["path"]
    return root, path[len(root) :] if _is_below(root, path) else path


def _is_below(prefix: str, path: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _mounted_scope(scope: Mapping[str, Any], root: str, path: str, prefix: str) -> dict[str, Any]:
    """Return the scope of a mounted application, with the whole path."""
    mounted = {**scope, "root_path": root + prefix, "path": root + path}
    if mounted["path"] != scope["path"] and scope.get("raw_path") is not None:
        mounted["raw_path"] = urllib.parse.quote(root).encode() + scope["raw_path"]
    return mounted
