"""Where a thread is, in words for a log: what the loop watchdog tells.

`read_stack` looks at another thread; the rest is data of whoever has made it. Nothing here keeps a frame.
"""

import asyncio
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

__all__ = ("Line", "Repeats", "Stack", "read_stack")

# How long the same place is not explained again.
_REPEAT_SECONDS = 60.0
# Whose code is not what a developer looks for. asyncio's directory tells where the standard library is imported from.
_LIBRARIES = tuple(
    str(directory / "_")[:-1]
    for directory in (Path(asyncio.__file__).parent.parent, Path(__file__).parent.parent)
)
# Where a debugger waits for its user. ipdb, pudb and pdb++ are made of bdb.
_DEBUGGERS = frozenset({"bdb", "pdb", "pydevd", "_pydevd_bundle", "debugpy"})


class Line(NamedTuple):
    """A line of a stack, which unlike a frame keeps nothing alive."""

    module: str
    filename: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.filename}:{self.number} in {self.function}"

    def is_library(self) -> bool:
        """Tell whether the line is not the project's own."""
        if self.filename.startswith(("<frozen ", *_LIBRARIES)):
            return True
        return not {"site-packages", "dist-packages"}.isdisjoint(Path(self.filename).parts)


class Stack:
    """Where a thread is, as far as it tells a developer something.

    Attributes:
        lines: from the first line of the project's own code on; if it has none there, all inside of the loop; else all.
        place: the innermost line of the project's own code, which is where something can be done; else the innermost of all.
        debugged: whether a debugger is waiting there.
    """

    def __init__(self, lines: list[Line], depth: int) -> None:
        inside = lines[depth:]
        own = [number for number, line in enumerate(inside) if not line.is_library()]
        self.lines = (inside[own[0] :] if own else inside) or lines
        self.place = inside[own[-1]] if own else self.lines[-1]
        # Further out a debugger may be what has started the program.
        self.debugged = any(line.module.partition(".")[0] in _DEBUGGERS for line in inside)

    def __str__(self) -> str:
        """Return it as a traceback has it, without a newline at the end."""
        summary = traceback.StackSummary.from_list(
            [
                traceback.FrameSummary(line.filename, line.number, line.function, lookup_line=False)
                for line in self.lines
            ]
        )
        return "".join(summary.format()).rstrip()


def read_stack(thread: int) -> list[Line]:
    """Return the lines of a thread's stack, the outermost first; none if it is gone.

    A frame that returns meanwhile is let go here, and so are its variables. So this does no more than it must: the source is
    looked up afterwards.
    """
    lines = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        code = frame.f_code
        module = str(frame.f_globals.get("__name__"))
        # Between two lines a frame has no number.
        number = frame.f_lineno or code.co_firstlineno
        lines.append(Line(module, code.co_filename, number, code.co_qualname))
        frame = frame.f_back
    return lines[::-1]


class Repeats:
    """Counts how often a place was told within a minute."""

    def __init__(self) -> None:
        self._told: dict[Line, tuple[float, int]] = {}

    def count(self, place: Line, now: float) -> int:
        """Return the number of this time: 1 if the place was not explained in the last minute."""
        self._told = {
            line: told for line, told in self._told.items() if now - told[0] < _REPEAT_SECONDS
        }
        since, times = self._told.get(place, (now, 0))
        self._told[place] = (since, times + 1)
        return times + 1
