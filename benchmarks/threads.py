"""`ThreadCounter`: how many threads Python starts, by whatever name it is done.

The functions that start a thread are replaced wherever a module holds them, those of `threading` among them, so
that ``Thread.start`` and direct calls are both counted. (The audit event for this is missing in Python 3.11.)

Which thread may touch what. Any thread may start one while another counts; the lock is held for the count alone.
"""

import _thread
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from benchmarks.bench import BenchmarkError

__all__ = ("ThreadCounter",)

# The last came with Python 3.13; the second is an old name of the first.
_NAMES = ("start_new_thread", "start_new", "start_joinable_thread")


class ThreadCounter:
    """Counts the threads that are started in a block; ``started`` is how many there were so far.

    Raises:
        BenchmarkError: on entering, when a thread is started and not counted.
    """

    def __init__(self) -> None:
        self.started = 0
        self._lock = threading.Lock()
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        originals = {id(found): found for name in _NAMES if (found := getattr(_thread, name, None))}
        counting = {key: self._counting(original) for key, original in originals.items()}
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if id(value) in counting:
                    setattr(module, name, counting[id(value)])
                    self._replaced.append((module, name, value))
        self._prove()
        return self

    def __exit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for module, name, original in self._replaced:
            setattr(module, name, original)
        self._replaced.clear()

    def _counting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_start(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.started += 1
            return start(*args, **kwargs)

        return count_and_start

    def _prove(self) -> None:
        # A count of nothing must not come from a counter that hears nothing.
        before = self.started
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        if self.started != before + 1:
            raise BenchmarkError(f"one thread was started, {self.started - before} were counted")
