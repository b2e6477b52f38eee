"""What a supervisor does about its workers: decisions only, no process, no signal, no clock.

Theory of operation. The supervisor tells the roster what has happened (`ready`, `ended`, `asked_to_stop`, ...) and what time it is; each
answer is a list of actions, for the supervisor to do in that order. Between two events only time passes: `next_at` says until when
nothing is to be done, and `tick` is the event that this time has come.

There is a place for each worker number. In a place there is the worker that serves; while it is replaced, the one that is to follow it;
and its predecessor, as long as that finishes its requests. So there are never more than two processes for a number before the next
replacement of it, which waits for the predecessor to end.

Hard rules.

1. A worker is told to end once. A second SIGTERM would be the wish to end at once.
2. Until one worker has been ready there is only the first, so that what keeps all of them from starting is said by one.
3. Whatever ends, nothing is started again without an end in sight: each early end in a row doubles the pause.
4. When the supervisor is to stop, nothing is started any more.

Which thread may touch what. A roster belongs to the supervisor's thread, the main thread.
"""

import logging
import signal
from collections.abc import Iterable

from django_asyncbridge.serving._roster_parts import (
    Action,
    Kill,
    Place,
    Roll,
    Say,
    Start,
    State,
    StopListening,
    Terminate,
    Worker,
    exit_code_of,
    how_it_ended,
)

__all__ = ("Roster",)

# After the time for the requests: the lifespan and the threads of a worker end too. Not measured.
_MORE_SECONDS = 5.0
# For a worker whose files have changed. Not measured: a page is done by then, and who edits does not wait for a stream without end.
_EDIT_SECONDS = 2.0
# A worker that has served for so long was not broken from the start. Not measured.
_STEADY_SECONDS = 10.0
# One that ends by itself with code 0, after its number of requests, may do that soon; but not at once each time. Not measured.
_STEADY_ENDED_SECONDS = 1.0
# The pause before the second try in a row; then twice that, and so on. One second costs little processor time even if starting takes
# all of it for half a second; a database that restarts is back after some tries; and after the last step one who mends the cause
# waits half a minute at most.
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Roster:
    """The workers of a supervisor, and what to do about them.

    Args:
        workers: how many.
        graceful_seconds: how long a worker's requests may take to finish; None for any time.
        start_seconds: how long a worker may take until it is ready; None for any time.
        reload: there is one worker, which is started anew when files change; one that cannot start waits for that. It may take
            any time to start, for somebody may be debugging it.
    """

    def __init__(
        self,
        workers: int,
        *,
        graceful_seconds: float | None,
        start_seconds: float | None,
        reload: bool = False,
    ) -> None:
        self._places = {number: Place(number) for number in range(1, workers + 1)}
        self._workers: dict[int, Worker] = {}
        self._last_key = 0
        self._end_seconds = None if graceful_seconds is None else graceful_seconds + _MORE_SECONDS
        self._start_seconds = None if reload else start_seconds
        self._reload = reload
        self._ever_ready = False
        self._roll = Roll()
        self._signals_seen: set[int] = set()
        self._code = 0
        self._over = False

    @property
    def exit_code(self) -> int | None:
        """What the supervisor has to return, once there is nothing left to wait for; None until then."""
        return self._code if self._over else None

    def next_at(self) -> float | None:
        """Return the time of the next `tick`; None if only an event can bring anything to do."""
        times = [one.deadline for one in self._workers.values()]
        times += [place.start_at for place in self._places.values()]
        return min((time for time in times if time is not None), default=None)

    # --- Events ------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        """Start the first worker."""
        return [self._start(self._places[1], now)]

    def started(self, key: int, pid: int) -> None:
        """Take note of the process that a `Start` has become."""
        self._workers[key].pid = pid

    def ready(self, key: int, now: float) -> list[Action]:
        """Take note that a worker serves."""
        worker = self._workers[key]
        # One that is late has been killed, and would be followed at once by its end.
        if worker.state is not State.STARTING or worker.late:
            return []
        worker.state, worker.ready_at, worker.deadline = State.READY, now, None
        place = self._places[worker.number]
        actions: list[Action] = []
        if worker is place.following:
            place.previous, place.current, place.following = place.current, worker, None
            if place.previous is not None:
                actions += self._end(place.previous, self._end_seconds, now)
            return actions + self._go_on_rolling(now)
        if not self._ever_ready:
            self._ever_ready = True
            others = [one for one in self._places.values() if one is not place]
            actions += [self._start(one, now) for one in others]
            actions += self._roll_once_more(now)
        return actions

    def ended(self, key: int, code: int, now: float, how: str | None = None) -> list[Action]:
        """Take note that the process of a worker has ended.

        Args:
            key: whose.
            code: as `subprocess.Popen.returncode` has it: below 0 for a signal.
            now: the time.
            how: what to say about it; None for what the code says.
        """
        worker = self._workers.pop(key)
        place = self._places[worker.number]
        if self._signals_seen:
            self._over = not self._workers
            return []
        if worker is place.previous:
            place.previous = None
            return self._go_on_rolling(now)
        how = how or how_it_ended(worker, code)
        if worker is place.following:
            place.following = None
            return self._stop_rolling(place, worker, how, now)
        place.current = None
        if place.following is not None:
            return [Say(logging.WARNING, f"{worker} {how}; the one that follows it is starting.")]
        if worker.state is State.ENDING:
            return [self._start(place, now)]
        if worker.ready_at is None and self._reload:
            return [Say(logging.ERROR, f"{worker} {how}; it is started when a file has changed.")]
        if not self._ever_ready:
            self._over, self._code = True, 1 if worker.late else exit_code_of(code)
            return [Say(logging.ERROR, f"{worker} {how} before it was ready.")]
        return self._start_again(place, worker, code, how, now)

    def asked_to_roll(self, now: float) -> list[Action]:
        """Replace all workers one by one, now or after what goes on already."""
        if self._signals_seen:
            return []
        self._roll.again = True
        if self._roll.active or not self._ever_ready:
            return [Say(logging.INFO, "All workers will be replaced once more after this.")]
        return self._roll_once_more(now)

    def asked_to_stop(self, number: int, now: float) -> list[Action]:
        """End all workers: cleanly on the first signal of a kind, at once on the second.

        Of a kind, because a process manager often adds its SIGTERM to the SIGINT that Ctrl-C has already sent to all: that is one wish.
        """
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if number in self._signals_seen:
            self._code = 128 + number
            said = Say(logging.WARNING, f"{name} again: all workers are killed.")
            return [said, *(Kill(key) for key in self._workers)]
        first = not self._signals_seen
        self._signals_seen.add(number)
        if not first:
            return []
        for place in self._places.values():
            place.start_at = None
        said = Say(logging.INFO, f"{name}: all workers are to end. ({name} again kills them)")
        actions: list[Action] = [said, StopListening()]
        for worker in self._workers.values():
            actions += self._end(worker, self._end_seconds, now)
        self._over = not self._workers
        return actions

    def changed(self, names: Iterable[str], now: float) -> list[Action]:
        """Start the worker anew, since files of the project have changed."""
        if self._signals_seen:
            return []
        place = self._places[1]
        said = Say(logging.INFO, f"Changed: {', '.join(names)}; the worker is started anew.")
        if place.current is not None:
            # One that ends already is followed by one that reads the files as they are now.
            return [said, *self._end(place.current, _EDIT_SECONDS, now)]
        return [said, self._start(place, now)]

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        actions: list[Action] = []
        for worker in self._workers.values():
            if worker.deadline is not None and worker.deadline <= now:
                worker.deadline, worker.late = None, True
                done = "ended" if worker.state is State.ENDING else "become ready"
                actions += [
                    Say(logging.WARNING, f"{worker} has not {done} in time and is killed."),
                    Kill(worker.key),
                ]
        due = [p for p in self._places.values() if p.start_at is not None and p.start_at <= now]
        return actions + [self._start(place, now) for place in due]

    # --- Starting and ending -----------------------------------------------------

    def _start(self, place: Place, now: float) -> Start:
        place.current = self._new_worker(place, now)
        return Start(place.current.key, place.number)

    def _new_worker(self, place: Place, now: float) -> Worker:
        self._last_key += 1
        worker = self._workers[self._last_key] = Worker(self._last_key, place.number)
        worker.deadline = None if self._start_seconds is None else now + self._start_seconds
        place.start_at = None
        return worker

    def _end(self, worker: Worker, seconds: float | None, now: float) -> list[Action]:
        if worker.state is State.ENDING:
            return []
        worker.state = State.ENDING
        worker.deadline = None if seconds is None else now + seconds
        return [Terminate(worker.key)]

    def _start_again(
        self, place: Place, worker: Worker, code: int, how: str, now: float
    ) -> list[Action]:
        """Put another worker in the place of one that has ended by itself, after a pause if that happens too often."""
        steady = _STEADY_ENDED_SECONDS if code == 0 else _STEADY_SECONDS
        early = worker.ready_at is None or now - worker.ready_at < steady
        place.early_ends = place.early_ends + 1 if early else 0
        # Once may happen to a worker that was ready; one that never was would fail again.
        tries = place.early_ends - (worker.ready_at is not None)
        level = logging.INFO if code == 0 else logging.WARNING
        if tries <= 0:
            return [
                Say(level, f"{worker} {how}; it is started again."),
                self._start(place, now),
            ]
        # The exponent is bounded as well, or the power would grow for ever.
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 10), _LONGEST_PAUSE_SECONDS)
        place.start_at = now + pause
        return [Say(level, f"{worker} {how}; it is started again in {pause:g} s.")]

    # --- Replacing all -----------------------------------------------------------

    def _roll_once_more(self, now: float) -> list[Action]:
        """Begin to replace all workers, if that was asked for."""
        if not self._roll.again:
            return []
        self._roll = Roll(list(self._places), active=True)
        return [
            Say(logging.INFO, "All workers are replaced, one by one."),
            *self._go_on_rolling(now),
        ]

    def _go_on_rolling(self, now: float) -> list[Action]:
        """Replace the next worker, unless something is still to be waited for."""
        if not self._roll.active or any(one.following for one in self._places.values()):
            return []
        if not self._roll.left:
            self._roll.active = False
            said = Say(logging.INFO, "All workers have been replaced.")
            return [said, *self._roll_once_more(now)]
        place = self._places[self._roll.left[0]]
        if place.previous is not None:
            return []
        del self._roll.left[0]
        place.following = self._new_worker(place, now)
        return [Start(place.following.key, place.number)]

    def _stop_rolling(self, place: Place, worker: Worker, how: str, now: float) -> list[Action]:
        """Leave the rest of the workers as they are, since one that was to follow did not start."""
        self._roll.active = False
        actions: list[Action] = [
            Say(
                logging.ERROR,
                f"{worker}, which was to follow, {how} before it was ready; the workers that were not replaced go on.",
            )
        ]
        if place.current is None:
            actions += self._start_again(place, worker, 1, how, now)
        return actions + self._roll_once_more(now)
