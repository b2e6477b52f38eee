"""Tests of `django_asyncbridge.serving._roster`: what is decided about workers, without any process."""

import logging
from collections.abc import Callable
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from django_asyncbridge.serving._roster import Roster
from django_asyncbridge.serving._roster_parts import (
    Action,
    Kill,
    Say,
    Start,
    StopListening,
    Terminate,
)

# Names of the actions, so that a test reads as a table: S2 starts the worker of place 2, T5 terminates worker 5.
_SHORT: dict[type, Callable[[Action], str]] = {
    Start: lambda action: f"S{action.number}" if isinstance(action, Start) else "",
    Terminate: lambda action: f"T{action.key}" if isinstance(action, Terminate) else "",
    Kill: lambda action: f"K{action.key}" if isinstance(action, Kill) else "",
    StopListening: lambda _action: "close",
}


class Scene:
    """A roster, its clock, and what it has said."""

    def __init__(
        self,
        workers: int = 2,
        graceful_seconds: float | None = 30,
        start_seconds: float | None = 60,
        *,
        reload: bool = False,
    ) -> None:
        self.roster = Roster(
            workers, graceful_seconds=graceful_seconds, start_seconds=start_seconds, reload=reload
        )
        self.now = 100.0
        self.said: list[Say] = []

    def short(self, actions: list[Action]) -> str:
        """Keep what is said; return the rest in short."""
        self.said += [action for action in actions if isinstance(action, Say)]
        return " ".join(
            _SHORT[type(action)](action) for action in actions if not isinstance(action, Say)
        )

    def begin(self) -> str:
        return self.short(self.roster.begin(self.now))

    def ready(self, *keys: int) -> str:
        return " ".join(filter(None, (self.short(self.roster.ready(k, self.now)) for k in keys)))

    def ended(self, key: int, code: int = 0, how: str | None = None) -> str:
        return self.short(self.roster.ended(key, code, self.now, how))

    def roll(self) -> str:
        return self.short(self.roster.asked_to_roll(self.now))

    def stop(self, number: int = SIGTERM) -> str:
        return self.short(self.roster.asked_to_stop(number, self.now))

    def changed(self, *names: str) -> str:
        return self.short(self.roster.changed(names, self.now))

    def after(self, seconds: float) -> str:
        self.now += seconds
        return self.short(self.roster.tick(self.now))

    def last(self) -> tuple[int, str]:
        return self.said[-1].level, self.said[-1].text


@pytest.fixture
def scene() -> Scene:
    """Return two workers, 1 and 2, that serve."""
    scene = Scene()
    scene.begin()
    scene.ready(1)
    scene.ready(2)
    scene.now += 100
    return scene


# --- The first start -------------------------------------------------------------------


def test_begin_starts_the_first_worker_alone_and_the_others_when_it_is_ready() -> None:
    scene = Scene(3)

    assert scene.begin() == "S1"
    assert scene.ready(1) == "S2 S3"
    assert scene.ready(2, 3) == ""
    assert scene.roster.exit_code is None
    assert scene.roster.next_at() is None


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (3, 3), (0, 0), (-SIGKILL, 137)])
def test_first_worker_that_ends_before_it_is_ready_is_the_end(code: int, expected: int) -> None:
    scene = Scene()
    scene.begin()

    assert scene.ended(1, code) == ""

    assert scene.roster.exit_code == expected
    assert scene.last()[0] == logging.ERROR


def test_first_worker_that_takes_too_long_is_killed_and_that_is_the_end() -> None:
    scene = Scene()
    scene.begin()

    assert scene.roster.next_at() == 160
    assert scene.after(59) == ""
    assert scene.after(1) == "K1"
    assert scene.after(1) == ""
    assert scene.ended(1, -SIGKILL) == ""

    assert scene.roster.exit_code == 1
    assert scene.last()[1] == "Worker 1 took too long and was killed before it was ready."


def test_second_worker_that_cannot_start_at_first_is_tried_again_while_the_first_serves() -> None:
    scene = Scene()
    scene.begin()
    scene.ready(1)

    assert scene.ended(2, 1) == ""
    assert scene.roster.exit_code is None
    assert scene.after(1) == "S2"


# --- Workers that end by themselves ------------------------------------------------------


def test_worker_that_is_killed_is_started_again_at_once(scene: Scene) -> None:
    scene.roster.started(2, 77)

    assert scene.ended(2, -SIGKILL) == "S2"

    text = "Worker 2 (pid 77) was killed by SIGKILL; it is started again."
    assert scene.last() == (logging.WARNING, text)


def test_worker_that_ends_with_code_0_is_started_again_without_a_warning(scene: Scene) -> None:
    assert scene.ended(1, 0) == "S1"

    text = "Worker 1 ended with exit code 0; it is started again."
    assert scene.last() == (logging.INFO, text)


def test_unknown_signal_is_said_by_its_number(scene: Scene) -> None:
    scene.ended(1, -50)

    assert "was killed by signal 50;" in scene.last()[1]


def test_worker_that_cannot_start_is_tried_again_with_growing_pauses(scene: Scene) -> None:
    pauses = []
    assert scene.ended(2, -SIGKILL) == "S2"
    for key in range(3, 10):
        assert scene.ended(key, 1, "cannot be started: no memory") == ""
        at = scene.roster.next_at()
        assert at is not None
        pauses.append(at - scene.now)
        assert scene.after(pauses[-1]) == "S2"

    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert scene.last()[1] == "Worker 2 cannot be started: no memory; it is started again in 30 s."


@pytest.mark.parametrize(("code", "steady_seconds"), [(1, 10), (0, 1)])
def test_worker_that_ends_soon_is_started_with_pauses_until_one_is_steady(
    scene: Scene, code: int, steady_seconds: float
) -> None:
    assert scene.ended(2, code) == "S2"
    scene.ready(3)
    assert scene.ended(3, code) == "S2"
    scene.ready(4)
    assert scene.ended(4, code) == ""
    assert scene.after(1) == "S2"
    scene.ready(5)
    scene.after(steady_seconds)
    assert scene.ended(5, code) == "S2"


# --- Stopping ----------------------------------------------------------------------------


def test_stop_terminates_all_closes_the_sockets_and_ends_with_0(scene: Scene) -> None:
    assert scene.stop() == "close T1 T2"
    assert scene.roster.next_at() == scene.now + 35

    assert scene.ended(1, 0) == ""
    assert scene.roster.exit_code is None
    assert scene.ended(2, -SIGTERM) == ""
    assert scene.roster.exit_code == 0


def test_stop_that_takes_too_long_kills(scene: Scene) -> None:
    scene.stop()
    scene.ended(1)

    assert scene.after(35) == "K2"
    assert "Worker 2 has not ended in time and is killed." in scene.last()[1]
    scene.ended(2, -SIGKILL)
    assert scene.roster.exit_code == 0


def test_stop_without_a_limit_waits_for_ever() -> None:
    scene = Scene(graceful_seconds=None, start_seconds=None)
    scene.begin()
    assert scene.roster.next_at() is None
    scene.ready(1)
    scene.stop()

    assert scene.roster.next_at() is None


def test_stop_by_another_signal_changes_nothing_and_by_the_same_kills(scene: Scene) -> None:
    scene.stop(SIGINT)

    assert scene.stop(SIGTERM) == ""
    assert scene.stop(SIGINT) == "K1 K2"
    assert scene.last()[1].startswith("Ctrl-C again")
    scene.ended(1, -SIGKILL)
    scene.ended(2, -SIGKILL)
    assert scene.roster.exit_code == 130


def test_stop_while_all_wait_to_be_started_again_ends_at_once() -> None:
    scene = Scene(1)
    scene.begin()
    scene.ready(1)
    scene.ended(1, 1)
    scene.ended(2, 1)

    assert scene.stop() == "close"
    assert scene.roster.exit_code == 0
    assert scene.roster.next_at() is None


def test_stop_before_the_first_is_ready_starts_no_other() -> None:
    scene = Scene()
    scene.begin()

    assert scene.stop() == "close T1"
    assert scene.ready(1) == ""
    assert scene.ended(1, 0) == ""
    assert scene.roster.exit_code == 0


def test_what_is_asked_after_a_stop_changes_nothing(scene: Scene) -> None:
    scene.stop()

    assert scene.roll() == ""
    assert scene.changed("a.py") == ""


# --- Replacing all -----------------------------------------------------------------------


def test_roll_starts_each_follower_and_then_ends_its_predecessor(scene: Scene) -> None:
    assert scene.roll() == "S1"
    assert scene.ready(3) == "T1 S2"
    assert scene.ready(4) == "T2"
    assert scene.last() == (logging.INFO, "All workers have been replaced.")

    assert scene.ended(1) == ""
    assert scene.ended(2) == ""
    assert scene.ended(3, 1) == "S1"


def test_roll_keeps_the_predecessor_of_one_that_is_ready_too_late(scene: Scene) -> None:
    scene.roll()
    assert scene.after(60) == "K3"

    assert scene.ready(3) == ""
    assert scene.ended(3, -SIGKILL) == ""
    assert "took too long and was killed before it was ready" in scene.last()[1]


def test_roll_kills_a_predecessor_that_does_not_end(scene: Scene) -> None:
    scene.roll()
    scene.ready(3)

    assert scene.after(35) == "K1"


def test_roll_during_a_roll_is_done_once_more_after_it(scene: Scene) -> None:
    scene.roll()
    assert scene.roll() == ""
    assert scene.roll() == ""
    assert scene.ready(3) == "T1 S2"
    # The next round waits for the predecessor: never three processes for a number.
    assert scene.ready(4) == "T2"
    assert scene.ended(2) == ""
    assert scene.ended(1) == "S1"
    assert scene.ready(5) == "T3 S2"
    assert scene.ready(6) == "T4"
    assert scene.ended(4) == ""


def test_roll_before_the_first_is_ready_is_done_then() -> None:
    scene = Scene(1)
    scene.begin()

    assert scene.roll() == ""
    assert scene.ready(1) == "S1"
    assert scene.ready(2) == "T1"


def test_roll_stops_when_a_follower_does_not_start_and_the_others_go_on(scene: Scene) -> None:
    scene.roll()

    assert scene.ended(3, 1) == ""

    level, text = scene.last()
    assert (level, "ended with exit code 1" in text) == (logging.ERROR, True)
    assert scene.roster.next_at() is None
    # And it can be asked for again.
    assert scene.roll() == "S1"


def test_roll_asked_for_in_one_that_fails_is_still_done(scene: Scene) -> None:
    scene.roll()
    scene.roll()

    assert scene.ended(3, 1) == "S1"


def test_roll_whose_predecessor_ends_by_itself_waits_for_the_follower(scene: Scene) -> None:
    scene.roll()

    assert scene.ended(1, -SIGKILL) == ""
    assert scene.ready(3) == "S2"


def test_roll_whose_predecessor_and_follower_both_end_starts_again_later(scene: Scene) -> None:
    scene.roll()
    scene.ended(1, -SIGKILL)

    assert scene.ended(3, 1) == ""
    assert scene.after(1) == "S1"


def test_roll_takes_a_place_whose_worker_waits_to_be_started(scene: Scene) -> None:
    scene.ended(2, 1)
    scene.ended(3, 1)
    scene.roll()

    assert scene.ready(4) == "T1 S2"
    assert scene.roster.next_at() == scene.now + 35
    assert scene.ready(5) == ""


def test_stop_during_a_roll_ends_all_and_none_twice(scene: Scene) -> None:
    scene.roll()
    scene.ready(3)

    assert scene.stop() == "close T2 T3 T4"
    for key in (1, 2, 3):
        assert scene.ended(key) == ""
    assert scene.roster.exit_code is None
    scene.ended(4, -SIGTERM)
    assert scene.roster.exit_code == 0


# --- Files that change -------------------------------------------------------------------


def test_changed_ends_the_worker_and_starts_it_when_it_has_ended() -> None:
    scene = Scene(1, reload=True)
    scene.begin()
    assert scene.roster.next_at() is None
    scene.ready(1)

    assert scene.changed("a.py", "b.py") == "T1"
    assert scene.last()[1] == "Changed: a.py, b.py; the worker is started anew."
    assert scene.ended(1, -SIGTERM) == "S1"


def test_changed_while_the_worker_ends_needs_no_other() -> None:
    scene = Scene(1, reload=True)
    scene.begin()
    scene.ready(1)
    scene.changed("a.py")

    assert scene.changed("a.py") == ""
    assert scene.after(2) == "K1"
    assert scene.ended(1, -SIGKILL) == "S1"


def test_changed_while_the_worker_starts_starts_another() -> None:
    scene = Scene(1, reload=True)
    scene.begin()
    scene.ready(1)
    scene.changed("a.py")
    scene.ended(1)

    assert scene.changed("a.py") == "T2"
    assert scene.ready(2) == ""
    assert scene.ended(2, 0) == "S1"


def test_broken_worker_waits_for_the_next_change() -> None:
    scene = Scene(1, reload=True)
    scene.begin()

    assert scene.ended(1, 1) == ""
    text = "Worker 1 ended with exit code 1; it is started when a file has changed."
    assert scene.last() == (logging.ERROR, text)
    assert (scene.roster.exit_code, scene.roster.next_at()) == (None, None)
    assert scene.changed("a.py") == "S1"


def test_worker_that_is_killed_while_it_serves_does_not_wait_for_a_change() -> None:
    scene = Scene(1, reload=True)
    scene.begin()
    scene.ready(1)

    assert scene.ended(1, -SIGKILL) == "S1"
