"""A forked child that runs something, tells its parent the result, and leaves with `os._exit`.

A child has the forking thread only. What it must not do is come back: it ends in here, whatever happens.

Measuring tools have locks of their own. Under coverage a child now and then stops in coverage's at-fork handler, before anything
of ours runs in it, when another thread had such a lock. So a child says that it has begun; one that does not is ended, and
another is forked. Without coverage nothing of the kind is forgiven: there it is waited for.
"""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from tests.stress.watch import set_limit

__all__ = ("fork",)

# Long enough for a busy machine: the work takes milliseconds.
_LIMIT_SECONDS = 20
_BEGINS_SECONDS = 10
_BEGUN = b"!"


def fork(work: Callable[[], Any]) -> Any:
    """Call `work` in a forked child and return what it returns, or a text that says how the child ended."""
    pid, reader = _forked(work)
    while not _has_begun(reader):  # pragma: no cover  # see above
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        pid, reader = _forked(work)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().removeprefix(_BEGUN)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(told) if code == 0 else f"the forked child ended with {code}"


def _forked(work: Callable[[], Any]) -> tuple[int, int]:
    """Return a child, and the end of the pipe on which it tells."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_child(work, writer)  # pragma: no cover  # measured from the next frame on
    os.close(writer)
    return pid, reader


def _has_begun(reader: int) -> bool:
    """Wait for a sign of the child, or for its end."""
    patience = _BEGINS_SECONDS if "coverage" in sys.modules else None
    return bool(select.select([reader], [], [], patience)[0])


def _be_the_child(work: Callable[[], Any], writer: int) -> NoReturn:
    code = 1
    try:
        os.write(writer, _BEGUN)
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
