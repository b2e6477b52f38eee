"""`send_response`: a response on its way to the client.

Whole responses go in pieces of 64 KiB. The parts of a streaming response go out as they are made: an async
iterator is advanced on the event loop, a sync one in the request's home thread. The file of a `FileResponse` is read there in
large blocks, or left to the server if it offers that.

Hard rules. The client gets the bytes that Django's handler sends, headers and cookies in its order. What the client does not take is
not made: each part waits for the one before it to be sent; only a sync iterator runs ahead, a bounded number of parts. However the
sending ends, the iterators are closed before it has ended, and a cancelled task ends cancelled.

Which thread may touch what. A sync iterator and its response's file belong to the home thread from the first part to
the closing; everything else happens in the task of the request.

Source: ASGI specification, "Response Start" and "Response Body"; failure cases C71, C79, C80.
"""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Mapping,
)
from typing import Any

from django.http import FileResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge._thread_iteration import Feed
from django_asyncbridge.handlers._files import offload

__all__ = ("send_response",)

logger = logging.getLogger("django_asyncbridge.handlers")

_Send = Callable[[Any], Awaitable[None]]

# As Django: servers cut to their own liking, and nobody keeps more than that twice.
_PIECE_BYTES = 2**16
# A file of 200 MiB through uvicorn: 490 MiB/s in blocks of 64 KiB, 930 with three of them read ahead; 1,100 and 1,480 in blocks of
# 256 KiB. Larger ones gain a sixth and cost each slow client their size.
_BLOCK_BYTES = 2**18
_BLOCKS_AHEAD = 3
# A part costs 87 us with none made ahead, 26 with 3, 9 with 15, 4 with 63. What is large or takes time is not made ahead,
# since running ahead ends after a millisecond.
_PARTS_AHEAD = 15

_LAST = {"type": "http.response.body"}


async def send_response(response: HttpResponseBase, send: _Send, scope: Mapping[str, Any]) -> None:
    """Send a response to the client, to its end.

    Runs on the event loop of the request; a sync iterator runs in the request's home thread and sees its context
    variables. The response is not closed: that is for the caller, in the home thread.

    Iterators belong to the response: an async one is closed if it has an ``aclose``, also one that was not begun, a sync one in its thread.

    Cancellation: what a sync iterator waits for in `async_to_sync` is cancelled; it takes effect when the iterators are
    closed. What they raise then is the cause of the CancelledError, and is logged as a warning.

    Args:
        response: Django's.
        send: the server's.
        scope: of the request.

    Raises:
        UnicodeEncodeError: for a header that cannot be encoded; nothing has been sent then.
        OSError: what `send` raises when the client has left.
        Exception: what the iterator raises.
    """
    if not response.streaming:
        body: bytes = response.content  # type: ignore[attr-defined]  # may raise, and nothing is sent then
        await send(_start(response))
        await _send_pieces(body, send, last=True)
    elif not await _is_offloaded(response, send, scope):
        await _send_stream(response, send)


def _start(response: HttpResponseBase) -> dict[str, Any]:
    try:
        headers = [
            (name.encode("ascii"), value.encode("latin-1")) for name, value in response.items()
        ]
    except AttributeError:
        # Of a response class that keeps bytes, as Django's handler takes them too.
        headers = [
            (_encoded(name, "ascii"), _encoded(value, "latin-1"))
            for name, value in response.items()
        ]
    headers += [
        (b"Set-Cookie", cookie.OutputString().encode("ascii"))
        for cookie in response.cookies.values()
    ]
    return {"type": "http.response.start", "status": response.status_code, "headers": headers}


def _encoded(text: str | bytes, encoding: str) -> bytes:
    return text.encode(encoding) if isinstance(text, str) else bytes(text)


async def _send_pieces(
    body: bytes, send: _Send, *, last: bool, piece_bytes: int = _PIECE_BYTES
) -> None:
    """Send bytes in pieces, one if there are none: a server that has not sent the headers yet does so then."""
    for begin in range(0, len(body) or 1, piece_bytes):
        end = begin + piece_bytes
        more = not last or end < len(body)
        await send({"type": "http.response.body", "body": body[begin:end], "more_body": more})


async def _is_offloaded(response: HttpResponseBase, send: _Send, scope: Mapping[str, Any]) -> bool:
    """Have the server send the file of a response; tell whether it does."""
    if not isinstance(response, FileResponse):
        return False
    message = await offload(response, scope)
    if message is None:
        return False
    await send(_start(response))
    await send(message)
    return True


# --- Streaming ------------------------------------------------------------------


async def _send_stream(response: Any, send: _Send) -> None:
    parts, make_bytes = _parts_of(response)
    to_close = _chain(parts)
    piece_bytes = _BLOCK_BYTES if _is_file(response) else _PIECE_BYTES
    try:
        await send(_start(response))
        async for part in parts:
            await _send_pieces(make_bytes(part), send, last=False, piece_bytes=piece_bytes)
    except GeneratorExit:
        # Whoever closes the coroutine runs no event loop for it.
        raise
    except asyncio.CancelledError as cancelled:
        await _close_cancelled(to_close, response, cancelled)
        raise
    except BaseException:
        await _close(to_close)
        raise
    await _close(to_close)
    await send(_LAST)


def _is_file(response: Any) -> bool:
    """Tell whether the content is read from a file, in blocks of our choice."""
    return isinstance(response, FileResponse) and response.file_to_stream is not None


def _parts_of(response: Any) -> tuple[AsyncIterator[Any], Callable[[Any], bytes]]:
    """Return the parts of a response, and what makes bytes of each on the event loop, as Django does."""
    if _has_own(response, "__aiter__"):
        return aiter(response), _as_it_is
    if not response.is_async:
        return _from_thread(response), _as_it_is
    if _has_own(response, "streaming_content"):
        return aiter(response.streaming_content), _as_it_is
    # Django's own wrappers around it would leave it open.
    return response._iterator, response.make_bytes


def _as_it_is(part: Any) -> Any:
    return part


def _has_own(response: Any, name: str) -> bool:
    """Tell whether the class of a response does something differently from Django's."""
    return getattr(type(response), name, None) is not getattr(StreamingHttpResponse, name)


# --- Sync iterators, in the home thread ----------------------------------------------


def _from_thread(response: Any) -> AsyncGenerator[Any, None]:
    if isinstance(response, FileResponse):
        # Read by the iterator, at each block.
        response.block_size = max(response.block_size, _BLOCK_BYTES)
    ahead = _BLOCKS_AHEAD if _is_file(response) else _PARTS_AHEAD
    made: Any = _made_in_thread(response)
    # What crossings and messages about them show.
    made.__qualname__ = _named(response)
    return _PartFeed(made, ahead, True, None, None).items()


class _PartFeed(Feed[Any]):
    """A feed that is closed when nobody wants the part any more which the iterator is making."""

    async def _close(self, *, cancelled: bool) -> BaseException | None:
        # Otherwise an iterator that waits for the next event, which may never come, would be waited for.
        lost = await super()._close(cancelled=True)
        return None if isinstance(lost, asyncio.CancelledError) and not cancelled else lost


def _made_in_thread(response: Any) -> Generator[bytes, None, None]:
    """Iterate over a sync response; closed with this generator, in its thread."""
    if _has_own(response, "streaming_content"):
        iterator = parts = iter(response.streaming_content)
    else:
        iterator = response._iterator
        parts = map(response.make_bytes, iterator)
    try:
        yield from parts
    finally:
        close = getattr(iterator, "close", None)
        # What the response was given it closes itself, in this thread. For generators that is too late, and twice does no harm.
        if close is not None and (
            isinstance(iterator, Generator) or close not in response._resource_closers
        ):
            close()


# --- Closing ----------------------------------------------------------------------


async def _close(iterators: list[Any]) -> None:
    """Close iterators, the first one first, the others also if one raises."""
    if iterators:
        try:
            if (aclose := getattr(iterators[0], "aclose", None)) is not None:
                await aclose()
        finally:
            await _close(iterators[1:])


async def _close_cancelled(
    iterators: list[Any], response: Any, cancelled: asyncio.CancelledError
) -> None:
    try:
        await _close(iterators)
    except Exception as error:
        logger.warning(
            "%s raised after its response was cancelled", _named(response), exc_info=error
        )
        raise cancelled from error


def _named(response: Any) -> str:
    return _wrapping.describe(getattr(response, "_iterator", response))


def _chain(parts: Any) -> list[Any]:
    """Return the async iterator of a response and those that it wraps, before it is begun.

    Nobody else closes these: an async generator that is closed leaves what it iterates over open. Looked through is what Django
    puts around (`streaming_content` and compression), also below a middleware's generator.
    """
    chain: list[Any] = []
    found = [parts]
    while found:
        parts = found.pop()
        chain.append(parts)
        inner = _inside(parts)
        found += inner if _is_djangos(parts) else filter(_is_djangos, inner)
    return chain


def _inside(parts: Any) -> list[Any]:
    """Return the async iterators that an async generator was given."""
    frame = getattr(parts, "ag_frame", None)
    if frame is None:
        return []
    return [value for value in frame.f_locals.values() if isinstance(value, AsyncIterator)]


def _is_djangos(parts: Any) -> bool:
    frame = getattr(parts, "ag_frame", None)
    return frame is not None and frame.f_globals.get("__name__", "").startswith("django.")
