"""Functions that the tests run in other processes, which import them from here."""

import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from django_asyncbridge.bridge import _processes
from django_asyncbridge.bridge.sync import sync_to_async

F = TypeVar("F", bound=Callable[..., Any])

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
#: Names that functions noted in this process.
noted: list[str] = []


def note(name: str) -> int:
    noted.append(name)
    return os.getpid()


def noted_there() -> list[str]:
    return noted


def meet(address: str) -> Any:
    """Tell a listener which process this is; return what it answers, or raise it."""
    with Client(address) as connection:
        connection.send(os.getpid())
        answer = connection.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def divide(first: int, second: int) -> float:
    return first / second


def stop() -> NoReturn:
    raise StopIteration("enough")


def end_process() -> NoReturn:
    os._exit(1)


def variable_there() -> str:
    return variable.get()


def return_lock() -> Any:
    return lambda: None


class PickyError(Exception):
    """Cannot be unpickled, for its arguments are not what it was made with."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def raise_picky() -> NoReturn:
    raise PickyError(reason="no")


class FrozenError(Exception):
    """Takes no notes."""

    def add_note(self, note: str) -> NoReturn:
        raise TypeError("frozen")


def raise_frozen() -> NoReturn:
    raise FrozenError("ice")


class Stubborn:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[()]]:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise ValueError("not here")


def return_stubborn() -> Stubborn:
    return Stubborn()


def numbers() -> Iterator[int]:
    yield 1  # pragma: no cover


def note_calls() -> None:
    """Prepare a process of a pool."""
    _processes.set_after_call(functools.partial(note, "after"))


def fail_after_calls() -> None:
    """Prepare a process of a pool."""
    _processes.set_after_call(functools.partial(divide, 1, 0))


# --- Functions that wrappers have taken the place of ------------------------------------------


if TYPE_CHECKING:

    def to_process(function: F) -> F: ...
    def as_before(function: F) -> F: ...

else:
    to_process = sync_to_async(thread_sensitive=False, executor="processes")

    def as_before(function):
        @functools.wraps(function)
        def wrapper(*args):
            return "wrapped", function(*args)

        return wrapper


@to_process
def decorated(first: int) -> tuple[int, int]:
    return os.getpid(), first


@to_process
@as_before
def decorated_twice(first: int) -> int:
    return first


@as_before
@to_process
@as_before
def decorated_around(first: int) -> int:
    return first


class Methods:
    """Each kind of method, decorated."""

    def __init__(self, number: int) -> None:
        self.number = number

    @to_process
    def plain(self, first: int) -> tuple[int, int]:
        return self.number, first

    @classmethod
    @to_process
    def of_class(cls, first: int) -> tuple[str, int]:
        return cls.__name__, first

    @staticmethod
    @to_process
    def static(first: int) -> int:
        return first

    @to_process
    @staticmethod
    def wrapped_static(first: int) -> int:
        return first

    def bare(self, first: int) -> tuple[int, int]:
        return self.number, first

    def __call__(self, first: int) -> tuple[int, int]:
        return self.number, first


ring: Any = as_before(divide)
ring.__wrapped__ = ring
ring.__qualname__ = "ring"


@functools.wraps(ring)
def lost() -> NoReturn:
    """Not to be found: its name leads to a ring of wrappers."""
    raise AssertionError("it ran")
