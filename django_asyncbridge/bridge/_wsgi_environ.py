"""The WSGI environ of an ASGI scope: pure functions, one for each group of its keys.

Source: PEP 3333, "environ Variables"; ASGI specification, "WSGI Compatibility".
"""

import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

__all__ = ("TooManyHeadersError", "environ_of")


class TooManyHeadersError(ValueError):
    """A header is repeated more often than allowed."""


def environ_of(
    scope: Mapping[str, Any], body: IO[bytes], body_bytes: int, header_limit: int
) -> dict[str, Any]:
    """Return a new environ.

    Args:
        scope: an HTTP scope.
        body: becomes ``wsgi.input``.
        body_bytes: length of the body, for a request whose headers do not tell; 0 if it is not known.
        header_limit: how often a header may be repeated; 0 or None: as often as it likes.

    Raises:
        TooManyHeadersError: a header is repeated more often than `header_limit`.
    """
    environ = {
        **_request_environ(scope),
        **_address_environ(scope),
        **_wsgi_environ(scope, body),
        **_header_environ(scope.get("headers", ()), header_limit),
    }
    if body_bytes and "CONTENT_LENGTH" not in environ:
        # Django, for one, takes a request without it for one without a body, whatever wsgi.input_terminated says.
        environ["CONTENT_LENGTH"] = str(body_bytes)
    return environ


def _request_environ(scope: Mapping[str, Any]) -> dict[str, Any]:
    script_name, path_info = _split_path(scope.get("root_path", ""), scope["path"])
    return {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _native(script_name),
        "PATH_INFO": _native(path_info),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
    }


def _split_path(root_path: str, path: str) -> tuple[str, str]:
    """Divide a path into the application's own root and the rest, only at a slash.

    ASGI's path includes the root path. A path outside the root is taken whole, as some servers send it.
    """
    root = root_path.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return root, path[len(root) :]
    return root, path


def _native(text: str) -> str:
    """Return a WSGI string: UTF-8 bytes, each as one character. Source: PEP 3333, "Unicode Issues"."""
    return text if text.isascii() else text.encode("utf-8").decode("latin-1")


def _address_environ(scope: Mapping[str, Any]) -> dict[str, Any]:
    host, port = scope.get("server") or ("localhost", 80)  # WSGI must have them, ASGI need not
    environ = {"SERVER_NAME": host, "SERVER_PORT": str(port or 0)}
    client = scope.get("client")
    if client is not None:
        environ["REMOTE_ADDR"] = client[0]
    return environ


def _wsgi_environ(scope: Mapping[str, Any], body: IO[bytes]) -> dict[str, Any]:
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        # Reading ends where the body does, whether or not CONTENT_LENGTH tells its length.
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def _header_environ(headers: Iterable[tuple[bytes, bytes]], limit: int) -> dict[str, str]:
    """Translate request headers, those of the same name joined in their order."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        # "-" becomes "_", so with an underscore of its own a client's header would be taken for
        # another that a proxy set. Web servers drop these for the same reason.
        if b"_" in name:
            continue
        key = _environ_name(name.decode("latin-1"))
        same = values.setdefault(key, [])
        if limit and len(same) >= limit:
            raise TooManyHeadersError(f"More than {limit} headers for {key}.")
        same.append(value.decode("latin-1"))
    return {key: _separator(key).join(same) for key, same in values.items()}


def _environ_name(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{name}"


def _separator(key: str) -> str:
    # HTTP/2 and HTTP/3 clients may split a cookie header (RFC 9113, 8.2.3); all others are lists.
    return "; " if key == "HTTP_COOKIE" else ","
