"""A forked child that runs something, tells its parent the result, and leaves with `os._exit`.

A child has the forking thread only. What it must not do is come back: it ends in here, whatever happens.

A child is not measured. Coverage has locks of its own, which another thread may hold at the fork: whatever takes one in the child then waits
for ever, be it coverage's at-fork handler, its tracer in a file that is new to it, or what it does at `os._exit`.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from tests.stress.watch import set_limit

__all__ = ("fork",)

# Long enough for a busy machine: the work takes milliseconds.
_LIMIT_SECONDS = 20
# What coverage's at-fork handler starts anew from.
_VARIABLES = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")


def fork(work: Callable[[], Any]) -> Any:
    """Call `work` in a forked child and return what it returns, or a text that says how the child ended."""
    reader, writer = os.pipe()
    # In the child, at-fork handlers run before anything else, and would be traced.
    tracer = sys.gettrace()
    sys.settrace(None)
    with _unmeasured():  # pragma: no cover  # nor is this
        pid = os.fork()
        if pid == 0:
            _be_the_child(work, writer)
    sys.settrace(tracer)  # pragma: no cover
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(told) if code == 0 else f"the forked child ended with {code}"


@contextlib.contextmanager
def _unmeasured() -> Iterator[None]:  # pragma: no cover
    """Hide from coverage's at-fork handler that there is something to measure."""
    coverage: Any = sys.modules.get("coverage")
    running = [] if coverage is None else coverage.Coverage._instances
    hidden = running[:]
    variables = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    running.clear()
    try:
        yield
    finally:
        running[:] = hidden
        os.environ.update(variables)


def _be_the_child(work: Callable[[], Any], writer: int) -> NoReturn:  # pragma: no cover
    threading.settrace(None)
    # The system's own function; coverage puts one of its own into `os`.
    os._exit = sys.modules["posix"]._exit
    code = 1
    try:
        set_limit(_LIMIT_SECONDS)  # the parent's alarm is not inherited
        told = json.dumps(work()).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(told)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
