"""What a fork does to process-wide state: only the forking thread lives on in the child.

Every lock, executor, loop and waiting thread of the parent is a dead copy in the child. `epoch` counts
forks, so that objects can tell that they come from before; `on_fork` registers what to set up anew in the child.
Hooks run in the child's only thread, before any other code of it.
"""

import os
from collections.abc import Callable

__all__ = ("epoch", "on_fork", "pid")

_epoch = 0
_pid = os.getpid()
_hooks: list[Callable[[], None]] = []


def epoch() -> int:
    """Return how many forks lie between the first process that imported this and the current one."""
    return _epoch


def pid() -> int:
    """Return this process's id, without asking the system each time."""
    return _pid


def on_fork(hook: Callable[[], None]) -> None:
    """Call `hook` in every forked child from now on, in the order of registration."""
    _hooks.append(hook)


def _after_fork_in_child() -> None:
    global _epoch, _pid
    _epoch += 1
    _pid = os.getpid()
    for hook in _hooks:
        hook()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # there is no fork on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
