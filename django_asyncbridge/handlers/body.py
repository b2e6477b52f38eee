"""`read_body`: what the client sends, complete before the view begins, as a file that Django's request reads from.

A body of one message, or of no more than ``FILE_UPLOAD_MAX_MEMORY_SIZE`` bytes, stays in memory and costs no crossing. A larger
one goes to a temporary file in ``FILE_UPLOAD_TEMP_DIR``, a MiB at a time.

Hard rules. The disk is never touched on the event loop. The home thread is never waited for: a slow upload holds no thread
of a request. Whoever does not get the file leaves none behind, whatever happens in between.

Which thread may touch what. A `_Spool` belongs to the task that reads, and while that waits for `_write` or `_finish`, to
the thread which runs them.

Source: ASGI specification, "Request - receive event"; failure cases C75, C76.
"""

import asyncio
import contextlib
import io
import logging
import tempfile
from collections.abc import Awaitable, Callable
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import RequestAborted

from django_asyncbridge.bridge._iterating import to_the_end
from django_asyncbridge.bridge.sync import sync_to_async

__all__ = ("blocks_on_close", "read_body")

logger = logging.getLogger("django_asyncbridge.handlers")

_Receive = Callable[[], Awaitable[Any]]

# A body of 100 MiB in the 64 KiB that servers pass on: 160 MiB/s if each is a crossing, 1,200 with 256 KiB gathered, 1,800 with a
# MiB; more is slower again.
_GATHER_BYTES = 2**20


async def read_body(receive: _Receive) -> IO[bytes]:
    """Read the body of a request, and return it as a file positioned at its start.

    The caller closes the file; see `blocks_on_close`.

    Runs on the event loop; a large body is written in a thread of the default executor. Cancellation: takes effect when
    a write that is under way has ended and the temporary file is closed, which deletes it.

    Args:
        receive: the server's.

    Raises:
        django.core.exceptions.RequestAborted: when the client leaves before it has sent everything.
        ValueError: when the server sends a message that is none of a request's.
        OSError: when the temporary file cannot be made or written.
    """
    body, more = _body_of(await receive())
    if not more:
        return io.BytesIO(body)
    spool = _Spool()
    try:
        await spool.take(body)
        while more:
            body, more = _body_of(await receive())
            await spool.take(body)
        return await spool.finished()
    except GeneratorExit:
        # Whoever closes the coroutine runs no event loop for it.
        spool.close()
        raise
    except BaseException:
        await spool.discard()
        raise


def blocks_on_close(file: IO[bytes]) -> bool:
    """Tell whether closing a file of `read_body` may block; then it is to be closed in a thread."""
    return not isinstance(file, io.BytesIO)


def _body_of(message: Any) -> tuple[bytes, bool]:
    kind = message.get("type")
    if kind == "http.request":
        return message.get("body", b""), message.get("more_body", False)
    if kind == "http.disconnect":
        raise RequestAborted
    raise ValueError(
        f"the server sent a message of type {kind!r} while the body of an HTTP request was read; it has to be "
        "'http.request' or 'http.disconnect'. Look for a middleware around the application that passes on a receive() "
        "of another protocol"
    )


def _off_loop(function: Callable[[], Any]) -> Awaitable[Any]:
    return sync_to_async(function, thread_sensitive=False)()


class _Spool:
    """A body in the making: in memory up to the limit of the settings, then in a temporary file."""

    def __init__(self) -> None:
        self._gathered = io.BytesIO()
        self._room = settings.FILE_UPLOAD_MAX_MEMORY_SIZE
        self._file: IO[bytes] | None = None

    async def take(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._gathered.write(body)
        if self._gathered.tell() > self._room:
            await _off_loop(self._write)
            self._room = _GATHER_BYTES

    async def finished(self) -> IO[bytes]:
        """Return the whole body as a file at its start."""
        if self._file is not None:
            await _off_loop(self._finish)
            return self._file
        self._gathered.seek(0)
        return self._gathered

    async def discard(self) -> None:
        """Close the temporary file, if there is one; a cancellation meanwhile takes effect when that is done."""
        if self._file is not None:
            await to_the_end(asyncio.get_running_loop().create_task(self._close_off_loop()))

    async def _close_off_loop(self) -> None:
        try:
            await _off_loop(self.close)
        except Exception:
            logger.info("The temporary file of a request was not closed in a thread", exc_info=True)
        finally:
            # No thread was to be had; otherwise it is closed by now, even if that raised.
            with contextlib.suppress(OSError):
                self.close()

    # --- In the thread ------------------------------------------------------------

    def close(self) -> None:
        """Close the temporary file, which deletes it; again does nothing."""
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            # Kept at once: the task that waits may be cancelled, and closes it then.
            self._file = tempfile.TemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR)  # noqa: SIM115
        # Let go of at once: the traceback of a full disk would keep it, and a buffer in use cannot be freed.
        with self._gathered.getbuffer() as gathered:
            self._file.write(gathered)
        self._gathered = io.BytesIO()

    def _finish(self) -> None:
        assert self._file is not None
        self._write()
        self._file.seek(0)
