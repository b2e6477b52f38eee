"""Where ours differs from asgiref on purpose, and why.

The only differences that the comparison lets pass. An entry names scenarios, and says how the outcomes differ:
as a pair, or as a rule that a pair has to follow. An entry that explains no difference any more is an error too.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from tests.differential.runner import HANGS

__all__ = ("DIFFERENCES", "Difference")


@dataclass(frozen=True)
class Difference:
    """One difference that is on purpose.

    Args:
        scenarios: a pattern for names.
        reason: why.
        differs: tells of the outcome there and the outcome here whether this is how they differ.
        except_for: a pattern for names among them that this does not explain.
        asgiref_hangs: whether that is what it does there; nobody waits long for it then.
        on_every_python: whether the difference is there whatever the Python; if not, the reason says why.
    """

    scenarios: str
    reason: str
    differs: Callable[[Any, Any], bool]
    except_for: str = ""
    asgiref_hangs: bool = False
    on_every_python: bool = True

    def explains(self, name: str, theirs: object, ours: object) -> bool:
        """Tell whether this is how the outcomes of one scenario differ."""
        named = fnmatchcase(name, self.scenarios) and not fnmatchcase(name, self.except_for)
        return named and self.differs(theirs, ours)


def exactly(theirs: object, ours: object) -> Callable[[Any, Any], bool]:
    """Return a rule that one pair of outcomes follows."""
    return lambda there, here: (there, here) == (theirs, ours)


def ends_cancelled(theirs: list[dict[str, str]], ours: list[dict[str, str]]) -> bool:
    """Tell whether all differences are results there where here the task ends cancelled."""
    return all(
        there == here or ("result" in there and here.get("outside") == "CancelledError")
        for there, here in zip(theirs, ours, strict=True)
    )


class Note(NamedTuple):
    """One line of the outcome of `experiments.threads`; any object will do for a thread."""

    verb: str
    side: str
    level: int
    thread: object


def notes_of(lines: list[str]) -> Iterator[Note]:
    """Take an outcome apart; the number of a thread is the level at which it is met first."""
    for line in lines:
        verb, side, level, thread = line.replace(": place of", "").split()
        yield Note(verb, side, int(level), int(thread))


def lines_of(notes: Iterable[Note]) -> list[str]:
    """Put an outcome together again."""
    first: dict[object, int] = {}
    return [
        f"{verb} {side} {level}: place of {first.setdefault(thread, level)}"
        for verb, side, level, thread in notes
    ]


def here_until_needed(theirs: Iterable[Note]) -> Iterator[Note]:
    """Have each loop that a sync level makes run in the thread of that level, until sync code runs there again.

    From then on it runs in a worker. There it has a thread of its own from the beginning, which is met first at the async
    level it was made for. The loop of an outermost async level is not the library's.
    """
    thread_of: dict[object, object] = {}
    before: object = None
    for verb, side, level, there in theirs:
        if side == "sync":
            moved = [loop for loop, thread in thread_of.items() if thread == there]
            thread_of.update({loop: f"worker for {loop}" for loop in moved if verb == "enter"})
        elif there == level > 0:
            thread_of.setdefault(there, before)
        before = thread_of.get(there, there)
        yield Note(verb, side, level, before)


def runs_here_until_needed(theirs: list[str], ours: list[str]) -> bool:
    """Tell whether only the threads of async code differ, and just as they should."""
    return ours == lines_of(here_until_needed(notes_of(theirs)))


DIFFERENCES = [
    Difference(
        "threads/*",
        "C40: the async code of a top-level call runs in the calling thread, and in a worker once sync code "
        "needs that thread; there it takes a new thread for each call. The places of sync code are the same",
        runs_here_until_needed,
        except_for="*/singlethread",
    ),
    Difference(
        "swallowed_cancellation/*",
        "C26, P5: a task that was cancelled ends cancelled, also if code below swallowed it",
        ends_cancelled,
    ),
    Difference(
        "calls/sync_to_async_with_async_generator_function",
        "C60: what it makes is on the event loop already, and is nothing to call in a thread",
        exactly("none", "TypeError"),
    ),
    Difference(
        "calls/stop_iteration_from_sync_to_async",
        "C56: no future can hold StopIteration; it comes as RuntimeError, as out of a coroutine (later "
        "Pythons see to that themselves, cpython#112182)",
        exactly(HANGS, "RuntimeError"),
        asgiref_hangs=True,
        on_every_python=False,
    ),
    Difference(
        "contexts/task_that_outlives_thread_sensitive_context",
        "a context that was left has no thread any more; its late calls use the shared one, not a new one",
        exactly([0, 1, 2, 2], [0, 1, 0, 0]),
    ),
    Difference(
        "contexts/single_thread_context_and_a_new_loop_below_its_own",
        "P4: the one thread waits for the loop that would need it, which can never end; said at once",
        exactly(HANGS, "RuntimeError"),
        asgiref_hangs=True,
    ),
    Difference(
        "locals/local_in_copied_context_of_another_thread",
        "C48, C49: a Local goes where its context goes",
        exactly(None, 1),
    ),
    Difference(
        "locals/local_in_to_thread",
        "C48: a Local goes where its context goes",
        exactly(None, 1),
    ),
    Difference(
        "cancellations/cancelled_call_of_running_function",
        "P6: a function is waited for, not abandoned, before its call ends cancelled",
        exactly(
            ["CancelledError", ["task ended", "work ended"]],
            ["CancelledError", ["task waits", "work ended"]],
        ),
    ),
    Difference(
        "cancellations/task_group_with_a_failing_sibling",
        "P6, C30: nothing that a group started runs on when the group has ended",
        exactly(["group ended", "work ended"], ["work ended", "group ended"]),
    ),
    Difference(
        "cancellations/cancelled_call_whose_function_calls_async_code_afterwards",
        "P5: the cancellation is not lost, the next async code that the function calls never begins",
        exactly(
            ["CancelledError", ["work ended", "inner: NoneType", "none"]],
            ["CancelledError", ["work ended", "CancelledError"]],
        ),
    ),
    Difference(
        "cancellations/cancellation_on_its_way_into_a_new_loop",
        "P5: it arrives; asgiref cancels a task of another loop from outside, and waits for it here",
        exactly("RuntimeError", "CancelledError"),
    ),
    Difference(
        "lifetimes/task_on_the_outer_loop_that_outlives_async_to_sync",
        "C01: its sync code has a home after the call that started it has ended",
        exactly("RuntimeError", "none"),
    ),
    Difference(
        "lifetimes/coroutine_scheduled_on_the_outer_loop_by_sync_code",
        "C06: only what runs inside a call in the shared thread would wait for itself there",
        exactly("RuntimeError", "none"),
    ),
    Difference(
        "lifetimes/async_to_sync_for_a_loop_that_has_stopped",
        "C02: a loop that is not running is noticed",
        exactly(HANGS, "inner"),
        asgiref_hangs=True,
    ),
    Difference(
        "lifetimes/async_to_sync_in_pool_thread_that_once_served_a_stopped_loop",
        "C03: no pointer to a loop is left behind in a thread",
        exactly(HANGS, "inner"),
        asgiref_hangs=True,
    ),
    Difference(
        "lifetimes/refusal_by_the_shared_executor_is_told_each_time",
        "C05: no flag is left set by a call that never started",
        exactly(["LookupError", "RuntimeError"], ["LookupError", "LookupError"]),
    ),
    Difference(
        "lifetimes/token_of_one_call_is_used_in_the_next",
        "C47, P3: the calls of a task run in the task's own context",
        exactly([["set", "ValueError", "set"]] * 2, [["set", "none", "unset"]] * 2),
    ),
    Difference(
        "wrappers/async_to_sync_looks_like_its_function",
        "C64, P9: both wrappers look like what they wrap",
        exactly([[False] * 5, False], [[True] * 5, True]),
    ),
    Difference(
        "wrappers/async_to_sync_has_the_signature_of_its_function",
        "C64, P9: both wrappers look like what they wrap",
        exactly("fails with ValueError", "(one: int, *, two: int = 2) -> list[int]"),
    ),
    Difference(
        "wrappers/*_method_through_the_class",
        "C65, P9: a method taken from its class is given its instance by the caller",
        exactly("TypeError", "none"),
    ),
]
