"""`offload`: the message by which a server that can do so sends a file itself, instead of the blocks of a `FileResponse`.

A server says in ``scope["extensions"]`` what it can do: ``http.response.pathsend`` takes the path of a whole file,
``http.response.zerocopysend`` an open file from some position on.

Hard rules. The client gets the same bytes. So the file has to be one on disk that nothing stands in front of: no decompressing
reader, no content of a middleware's, no subclass with a way of its own to make the content. It has to be as
long as ``Content-Length`` says, and what is at the path has to be the file that is open. When in doubt there is no
message, and the response is streamed.

Which thread may touch what. The file belongs to the request's home thread; the event loop looks only at what the response
is. Between the look at the path and the server's there is a moment in which the file can be replaced.

Source: ASGI specification, "Extensions": "Zero Copy Send", "Path Send".
"""

import io
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.files.utils import FileProxyMixin
from django.http import FileResponse

from django_asyncbridge.bridge.sync import sync_to_async

__all__ = ("offload",)

_PATH, _ZERO_COPY = "http.response.pathsend", "http.response.zerocopysend"

# What decides about the content of a response, which a subclass can do differently.
_CONTENT_METHODS = (
    "__aiter__",
    "__iter__",
    "_set_streaming_content",
    "make_bytes",
    "streaming_content",
)
_FROM_FILE = type(iter(bytes, b""))


async def offload(response: FileResponse, scope: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the message that has the server send the file of a response, None if it has to be streamed.

    Costs a crossing to the home thread, but only where the server offers to send files.

    Args:
        response: what is to be sent, unchanged by this.
        scope: of the request.
    """
    extensions = scope.get("extensions") or {}
    if (_PATH in extensions or _ZERO_COPY in extensions) and _is_plain(response):
        return await sync_to_async(_message)(response, extensions)
    return None


def _is_plain(response: FileResponse) -> bool:
    """Tell whether the content is what Django reads from the file, as it is."""
    return (
        response.file_to_stream is not None
        and "Content-Length" in response.headers
        and type(response._iterator) is _FROM_FILE  # type: ignore[attr-defined]  # what would be streamed
        and all(
            getattr(type(response), name) is getattr(FileResponse, name)
            for name in _CONTENT_METHODS
        )
    )


def _message(response: FileResponse, extensions: Mapping[str, Any]) -> dict[str, Any] | None:
    file, lasting = _unwrapped(response.file_to_stream)
    if not _is_on_disk(file):
        return None
    try:
        file.flush()
        status, offset = os.fstat(file.fileno()), file.tell()
        count = int(response.headers["Content-Length"])
    except (OSError, ValueError):  # closed, a pipe, a header of somebody's own
        return None
    if not stat.S_ISREG(status.st_mode) or count <= 0 or offset + count != status.st_size:
        return None
    if _PATH in extensions and lasting and offset == 0:
        path = _path_of(file, status)
        if path is not None:
            return {"type": _PATH, "path": path}
    if _ZERO_COPY not in extensions:
        return None
    place = {"file": file, "offset": offset, "count": count}
    return {"type": _ZERO_COPY, **place, "more_body": False}


def _unwrapped(file: Any) -> tuple[Any, bool]:
    """Return what Django's and tempfile's wrappers read from, and whether its path outlasts the response."""
    lasting = True
    while True:
        if isinstance(file, tempfile._TemporaryFileWrapper):
            # The server may open the path when `send` has returned: closing the response deletes it.
            lasting = False
        elif not isinstance(file, FileProxyMixin) or type(file).read is not FileProxyMixin.read:
            return file, lasting
        file = file.file


def _is_on_disk(file: Any) -> bool:
    """Tell whether reading from a file object is reading from its descriptor, and nothing else."""
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    return type(raw) is io.FileIO and not raw.closed and raw.readable()


def _path_of(file: Any, status: os.stat_result) -> str | None:
    """Return the absolute path at which a server finds this very file, None if there is none."""
    name = file.name
    try:
        path = Path(name).absolute()
        str(path).encode()
        same = os.path.samestat(path.stat(), status)
    except (
        OSError,
        TypeError,
        UnicodeEncodeError,
    ):  # gone, opened by a descriptor, a name that is no text
        return None
    return str(path) if same else None
