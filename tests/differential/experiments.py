"""What is tried on each chain: where things run, what is seen of variables and of errors.

An experiment is a function of the library, a chain and a mode; its outcome is JSON. Threads, loops and errors are
told by the level at which they came up first, never by anything that changes from run to run.
"""

import asyncio
import contextvars
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from tests.differential.chains import Chain, Mode, Walk
from tests.differential.library import Library, name_of

__all__ = ("EXPERIMENTS", "Experiment", "current_error")

Experiment = Callable[[Library, Chain, Mode], object]


class RaisedError(Exception):
    """The error that levels raise."""


class RaisedBaseError(BaseException):
    """The same, for what only few ``except`` clauses catch."""


# --- Where things run --------------------------------------------------------


class Places(Walk):
    """Notes where each level runs."""

    def __init__(
        self, library: Library, chain: Chain, mode: Mode, where: Callable[[], object]
    ) -> None:
        super().__init__(library, chain, mode)
        self.where = where
        self.notes: list[tuple[str, int, object]] = []

    def enter(self, level: int) -> None:
        self.notes.append(("enter", level, self.where()))

    def leave(self, level: int) -> None:
        self.notes.append(("leave", level, self.where()))

    def same_as(self, *sides: str) -> list[str]:
        """Go, and say of each place at which level it was met first, among async levels, sync ones, or both."""
        self.walk()
        first: dict[int, int] = {}
        return [
            f"{verb} {side} {level}: place of {first.setdefault(id(place), level)}"
            for verb, level, place in self.notes
            if (side := "async" if self.chain.is_async(level) else "sync") in sides
        ]


def sync_threads(library: Library, chain: Chain, mode: Mode) -> object:
    """Which sync levels share a thread."""
    return Places(library, chain, mode, threading.current_thread).same_as("sync")


def threads(library: Library, chain: Chain, mode: Mode) -> object:
    """Which levels of both kinds share a thread."""
    return Places(library, chain, mode, threading.current_thread).same_as("sync", "async")


def loops(library: Library, chain: Chain, mode: Mode) -> object:
    """Which async levels share an event loop, and that no sync level sees a running one."""

    def loop() -> object:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None

    walk = Places(library, chain, mode, loop)
    shared = walk.same_as("async")
    seen = [place for _, level, place in walk.notes if not chain.is_async(level)]
    return [shared, [place is None for place in seen]]


def results(library: Library, chain: Chain, mode: Mode) -> object:
    """What comes back."""
    return Walk(library, chain, mode).walk()


# --- What is seen of variables -----------------------------------------------


class Variables(Walk, ABC):
    """Sets one thing at each level on the way down, and one on the way back."""

    def __init__(self, library: Library, chain: Chain, mode: Mode) -> None:
        super().__init__(library, chain, mode)
        self.names = [f"{way} {level}" for way in ("down", "back") for level in chain.levels]
        self.notes: list[str] = []
        self.fails = False

    def enter(self, level: int) -> None:
        self.note(f"enter {level}")
        self.set(f"down {level}")

    def leave(self, level: int) -> None:
        self.note(f"leave {level}")
        self.set(f"back {level}")

    def bottom(self, level: int) -> None:
        if self.fails:
            raise RaisedError

    def note(self, when: str) -> None:
        """Note what is seen now."""
        self.notes.append(f"{when}: {', '.join(filter(self.is_seen, self.names))}")

    @abstractmethod
    def set(self, name: str) -> None:
        """Set the thing of one name."""
        ...

    @abstractmethod
    def is_seen(self, name: str) -> bool:
        """Tell whether the thing of one name is set here."""
        ...

    def outcomes(self, fails: bool) -> list[str]:
        """Go, with or without an error from the bottom, and return what was seen where."""
        self.fails = fails
        try:
            self.walk()
        except RaisedError:
            self.notes.append("raised")
        self.note("after")
        return self.notes


class ContextVariables(Variables):
    """`Variables` in context variables."""

    def __init__(self, library: Library, chain: Chain, mode: Mode) -> None:
        super().__init__(library, chain, mode)
        self.variables = {name: contextvars.ContextVar[bool](name) for name in self.names}

    def set(self, name: str) -> None:
        self.variables[name].set(True)

    def is_seen(self, name: str) -> bool:
        return self.variables[name].get(False)


class LocalValues(Variables):
    """`Variables` in a `Local`."""

    def __init__(self, library: Library, chain: Chain, mode: Mode, thread_critical: bool) -> None:
        super().__init__(library, chain, mode)
        self.local = library.Local(thread_critical=thread_critical)

    def set(self, name: str) -> None:
        setattr(self.local, name, True)

    def is_seen(self, name: str) -> bool:
        return hasattr(self.local, name)


def variables(library: Library, chain: Chain, mode: Mode) -> object:
    """Where context variables are seen."""
    return ContextVariables(library, chain, mode).outcomes(fails=False)


def variables_of_failure(library: Library, chain: Chain, mode: Mode) -> object:
    """Where context variables are seen if the bottom raises."""
    return ContextVariables(library, chain, mode).outcomes(fails=True)


def local(library: Library, chain: Chain, mode: Mode) -> object:
    """Where the values of a Local are seen."""
    return LocalValues(library, chain, mode, False).outcomes(fails=False)


def local_of_failure(library: Library, chain: Chain, mode: Mode) -> object:
    """Where the values of a Local are seen if the bottom raises."""
    return LocalValues(library, chain, mode, False).outcomes(fails=True)


def critical_local(library: Library, chain: Chain, mode: Mode) -> object:
    """Where the values of a thread-critical Local are seen."""
    return LocalValues(library, chain, mode, True).outcomes(fails=False)


# --- What is seen of errors ----------------------------------------------------


def current_error() -> str:
    """Return the name of the error that is being handled here, or "none"."""
    error = sys.exception()
    return name_of(error) if error else "none"


class Errors(Walk):
    """Raises at one level, and notes which error each level sees."""

    def __init__(
        self, library: Library, chain: Chain, mode: Mode, error: BaseException, raises_at: int
    ) -> None:
        super().__init__(library, chain, mode)
        self.error = error
        self.raises_at = raises_at
        self.notes: list[str] = []

    def enter(self, level: int) -> None:
        if level == self.raises_at:
            raise self.error

    def leave(self, level: int) -> None:
        self.notes.append(f"level {level}: {self.seen(sys.exception())}")

    def seen(self, error: BaseException | None) -> str:
        """Say what an error is, beside the one that was raised."""
        assert error is not None
        context = name_of(error.__context__) if error.__context__ else "none"
        return f"{'the same' if error is self.error else name_of(error)}, context {context}"

    def outcome(self) -> list[str]:
        """Go, and return what was seen where."""
        try:
            self.walk()
        except BaseException as error:
            self.notes.append(f"outside: {self.seen(error)}")
        return self.notes


def errors(library: Library, chain: Chain, mode: Mode) -> object:
    """Who sees an error that is raised at each level."""
    return [Errors(library, chain, mode, RaisedError(), level).outcome() for level in chain.levels]


def base_errors(library: Library, chain: Chain, mode: Mode) -> object:
    """Who sees an error that is no Exception."""
    return [
        Errors(library, chain, mode, RaisedBaseError(), level).outcome() for level in chain.levels
    ]


class Handling(Walk):
    """Calls the next level while an error is handled, and notes what `sys.exception()` is there."""

    def __init__(self, library: Library, chain: Chain, mode: Mode) -> None:
        super().__init__(library, chain, mode)
        self.notes: list[str] = []

    def enter(self, level: int) -> None:
        self.notes.append(f"level {level}: {current_error()}")

    def sync_level(self, level: int) -> list[int]:
        try:
            raise RaisedError
        except RaisedError:
            return super().sync_level(level)

    async def async_level(self, level: int) -> list[int]:
        try:
            raise RaisedBaseError
        except RaisedBaseError:
            return await super().async_level(level)


def handled_errors(library: Library, chain: Chain, mode: Mode) -> object:
    """Which error is being handled, as each level sees it."""
    walk = Handling(library, chain, mode)
    walk.walk()
    return walk.notes


EXPERIMENTS: dict[str, Experiment] = {
    function.__name__: function
    for function in (
        results,
        sync_threads,
        threads,
        loops,
        variables,
        variables_of_failure,
        local,
        local_of_failure,
        critical_local,
        errors,
        base_errors,
        handled_errors,
    )
}
