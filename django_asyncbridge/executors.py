"""Named executors: ``sync_to_async(thread_sensitive=False, executor="reports")`` and who runs it.

Theory of operation. `executors` maps the aliases of ``ASYNCBRIDGE["EXECUTORS"]`` to executors, one for each in a process. Each is
built when it is first asked for, and again when it is broken (a process of its pool was killed), in a forked child, and
when its own settings have changed (tests). It is replaced then and shut down without waiting: what was submitted to it runs to its end,
and a call that it refused in this moment is submitted to its successor. "default" is the bridge's own pool, `request_threads`
gives it its limits.

Which thread may touch what. Any thread may call what is here. `_lock` guards which executors there are and their figures. The thread
that has it may take it again, since futures complete and finalizers run anywhere. Nothing of an executor is called under it
but its constructor: executors have locks of their own, and complete futures while they hold them.

At exit all are shut down and waited for. A forked child keeps its parent's executors without touching them: their threads are not
there, and their pipes lead to the parent's processes.
"""

import atexit
import dataclasses
import difflib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_asyncbridge import conf
from django_asyncbridge._executor_backends import BackendError, builder, described, problems
from django_asyncbridge.bridge import _fork, _state
from django_asyncbridge.bridge.sync import WorkerPool
from django_asyncbridge.conf import ExecutorConf

__all__ = (
    "ExecutorStatistics",
    "Executors",
    "UnknownExecutorError",
    "executors",
    "problems",
    "register",
    "statistics",
)

_DEFAULT = "default"


class UnknownExecutorError(KeyError):
    """There is no executor of that name; the message says which there are."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class ExecutorStatistics:
    """What a named executor is doing, at one moment, and has done since it was built.

    Attributes:
        alias: its name.
        backend: dotted path of its class.
        built: whether it exists; one that nobody has asked for does not, and all its figures are zero.
        max_workers: how many threads or processes the settings allow; None for any number or the backend's default.
        workers: how many threads there are; None for a backend that does not tell.
        submitted: calls so far. A lease of one of our own threads counts as one.
        running: calls that run now. A process pool also counts those that it keeps ready: as many as it has processes, and one.
        waiting: calls that wait for a thread or process.
        done: calls that have ended or were withdrawn.
        failed: of these, those that the executor failed: nobody was free in time, or it broke; of calls submitted to
            another backend without `sync_to_async` also those that raised.
    """

    alias: str
    backend: str
    built: bool = False
    max_workers: int | None = None
    workers: int | None = None
    submitted: int = 0
    running: int = 0
    waiting: int = 0
    done: int = 0
    failed: int = 0


class _Built:
    """One executor that exists, with its figures.

    Args:
        settings: what it was built from.
        executor: new; nothing was submitted yet.
        lock: guards the figures.
        on_broken: called with this when the executor turns out to be broken, in any thread, maybe in one of the executor's.
    """

    def __init__(
        self,
        settings: ExecutorConf,
        executor: Executor,
        lock: threading.RLock,
        on_broken: "Callable[[_Built], None]",
    ) -> None:
        self.settings = settings
        self.executor = executor
        self._lock = lock
        self._on_broken = on_broken
        self._unfinished: set[Future[Any]] = set()
        self._submitted = self._failed = 0
        if not isinstance(executor, WorkerPool):
            # In the object: its class has to stay what it is, and `Executor.map` comes by here, too.
            vars(executor)["submit"] = self._counting(executor.submit)

    def _counting(self, submit: Callable[..., "Future[Any]"]) -> Callable[..., "Future[Any]"]:
        def counting(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            __traceback_hide__ = True
            try:
                future = submit(function, *args, **kwargs)
            except BrokenExecutor:
                self._on_broken(self)
                raise
            with self._lock:
                self._submitted += 1
                self._unfinished.add(future)
            future.add_done_callback(self._finished)
            return future

        return counting

    def _finished(self, future: "Future[Any]") -> None:
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._unfinished.discard(future)
            self._failed += error is not None
        if isinstance(error, BrokenExecutor):
            self._on_broken(self)

    def statistics(self, alias: str) -> ExecutorStatistics:
        """Return its figures."""
        blank = _not_built(alias, self.settings)
        if isinstance(self.executor, WorkerPool):
            return _statistics_of_pool(blank, self.executor)
        with self._lock:
            unfinished, submitted, failed = tuple(self._unfinished), self._submitted, self._failed
        running = sum(future.running() for future in unfinished)
        # Some may have ended in this moment.
        waiting = sum(not future.running() and not future.done() for future in unfinished)
        return dataclasses.replace(
            blank,
            built=True,
            submitted=submitted,
            running=running,
            waiting=waiting,
            done=submitted - running - waiting,
            failed=failed,
        )


def _statistics_of_pool(blank: ExecutorStatistics, pool: WorkerPool) -> ExecutorStatistics:
    figures = pool.statistics()
    running = figures.workers - figures.idle
    return dataclasses.replace(
        blank,
        built=True,
        max_workers=figures.maximum,
        workers=figures.workers,
        submitted=figures.lent + figures.waiting + figures.expired,
        running=running,
        waiting=figures.waiting,
        done=max(figures.lent + figures.expired - running, 0),
        failed=figures.expired,
    )


def _not_built(alias: str, settings: ExecutorConf) -> ExecutorStatistics:
    return ExecutorStatistics(alias, described(settings), max_workers=settings.max_workers)


class Executors(Mapping[str, Executor]):
    """The executors of ``ASYNCBRIDGE["EXECUTORS"]`` by alias, each built when it is first asked for.

    There is one, `executors`. Iterating over it and ``in`` build nothing.
    """

    def __init__(self) -> None:
        self._built: dict[str, _Built] = {}
        self._lock = threading.RLock()
        # A forked child's parent's: not to be touched, nor to be let go, which some take for an order to end.
        self._left_alone: list[_Built] = []
        self._default = _Built(ExecutorConf(), _state.default_workers, self._lock, self._replace)

    def __getitem__(self, alias: str) -> Executor:
        """Return the executor of an alias; in any thread.

        Raises:
            UnknownExecutorError: if the setting has no such alias.
            ImproperlyConfigured: if it cannot be built, or the setting is wrong.
        """
        if alias == _DEFAULT:
            return self._default.executor
        built = self._built.get(alias)
        return self._build(alias) if built is None else built.executor

    def __iter__(self) -> Iterator[str]:
        return iter(conf.current().executors)

    def __len__(self) -> int:
        return len(conf.current().executors)

    def __contains__(self, alias: object) -> bool:
        return alias in conf.current().executors

    def _build(self, alias: str) -> Executor:
        while True:
            settings = _settings_of(alias)
            try:
                # Not under the lock: importing the class has to wait for whoever is importing it and may wait for us.
                build = builder(alias, settings)
                with self._lock:
                    if alias in self._built:
                        return self._built[alias].executor
                    if settings != _settings_of(alias):
                        continue
                    built = _Built(settings, build(), self._lock, self._replace)
                    self._built[alias] = built
                    return built.executor
            except BackendError as error:
                raise ImproperlyConfigured(
                    f'ASYNCBRIDGE["EXECUTORS"]["{alias}"] cannot be built: {error}'
                ) from error

    def _replace(self, broken: _Built) -> None:
        """Have another built when it is asked for; in any thread, under whatever lock of the executor's."""
        with self._lock:
            for alias, built in tuple(self._built.items()):
                if built is broken:
                    del self._built[alias]

    def statistics(self) -> dict[str, ExecutorStatistics]:
        """Return what each executor of the settings is doing, by alias. Builds none; any thread may ask."""
        everyone = conf.current().executors
        with self._lock:
            existing = {**self._built, _DEFAULT: self._default}
        return {
            alias: existing[alias].statistics(alias)
            if alias in existing
            else _not_built(alias, settings)
            for alias, settings in everyone.items()
        }

    def shutdown(self, wait: bool = True) -> None:
        """Shut all down but the default; what was submitted runs to its end. Whoever asks again gets new ones.

        Args:
            wait: block the caller until they have ended; not in one of their threads.
        """
        with self._lock:
            ended = tuple(self._built.values())
            self._built.clear()
        for built in ended:
            built.executor.shutdown(wait=wait)

    def follow_settings(self) -> None:
        """Shut those down, without waiting, whose settings have changed or are gone."""
        try:
            wanted = conf.current().executors
        except ImproperlyConfigured:
            # Whoever asks for one hears of it. What runs is left alone until the settings can be read again.
            return
        with self._lock:
            changed = [
                alias for alias, built in self._built.items() if built.settings != wanted.get(alias)
            ]
            ended = [self._built.pop(alias) for alias in changed]
        for built in ended:
            built.executor.shutdown(wait=False)

    def _forget_parents(self) -> None:
        self._lock = threading.RLock()
        self._left_alone += self._built.values()
        self._built = {}
        self._default = _Built(ExecutorConf(), _state.default_workers, self._lock, self._replace)


def _settings_of(alias: str) -> ExecutorConf:
    known = conf.current().executors
    if alias in known:
        return known[alias]
    near = difflib.get_close_matches(str(alias), known, 1, 0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    aliases = ", ".join(f'"{one}"' for one in known)
    raise UnknownExecutorError(
        f'ASYNCBRIDGE["EXECUTORS"] has no executor {alias!r}.{hint} There are: {aliases}.'
    )


executors = Executors()


def statistics() -> dict[str, ExecutorStatistics]:
    """Return what each executor of the settings is doing, by alias. Builds none; any thread may ask."""
    return executors.statistics()


def register() -> None:
    """Have `sync_to_async` know the names of executors. The app does this when Django starts; again does nothing."""
    _state.resolve_executor = executors.__getitem__


conf.on_change(executors.follow_settings)
_fork.on_fork(executors._forget_parents)
atexit.register(executors.shutdown)
