"""`DeferredInterrupt`: Ctrl-C in a thread that runs an event loop cancels the coroutine instead of tearing the loop apart.

Python's own handler raises KeyboardInterrupt between any two bytecodes, also in the loop's innermost parts, where a wake-up
can get lost with it. So while the main thread runs a loop of ours, ours is installed, as `asyncio.run` does, if nobody
else has one. A second Ctrl-C raises at once.

Which thread may touch what. Signal handlers are installed by the main thread and run there.
"""

import contextlib
import signal
import threading
from types import FrameType

from django_asyncbridge.bridge._run import Run

__all__ = ("DeferredInterrupt",)

# The module in C: what the other puts around it, to return enumerations, costs as much as all the rest of a call.
_signal = getattr(signal, "_signal", signal)
_get_handler = _signal.getsignal
_set_handler = _signal.signal
_SIGINT = int(signal.SIGINT)


class DeferredInterrupt:
    """A block in which SIGINT interrupts `run` if this is the main thread; elsewhere it does nothing."""

    __slots__ = ("_installed", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._installed = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if _get_handler(_SIGINT) is signal.default_int_handler:
            # ValueError: a subinterpreter, where signals cannot be handled.
            with contextlib.suppress(ValueError):
                _set_handler(_SIGINT, self._on_interrupt)
                self._installed = True

    def __exit__(self, *exc_info: object) -> None:
        if self._installed and _get_handler(_SIGINT) == self._on_interrupt:
            _set_handler(_SIGINT, signal.default_int_handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._run.interrupted(KeyboardInterrupt())
