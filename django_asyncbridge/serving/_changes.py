"""Which files of the project have changed since it was started: what ``--reload`` waits for.

watchfiles, which ``uvicorn[standard]`` brings, is told by the system; where it is not installed, or the system refuses to watch so
much, all files are looked at once a second. uvicorn's own watchers are these two as well, but theirs miss what changes before their
first look and between a report and the next look, and cannot be used without uvicorn.

Hard rules. What changes after `Changes.start` has returned is reported, once or more often. What is reported has been changed before:
who reads the file then reads the new one.

Which thread may touch what. A `Changes` belongs to the thread that made it. One thread of its own looks for changes; it hands them over
through a queue and then writes a byte into a pipe, in this order, so that whoever empties the pipe first and then the queue misses none.
"""

import contextlib
import fnmatch
import importlib
import logging
import os
import queue
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from django_asyncbridge.serving.errors import in_one_line

__all__ = ("Changes", "directories_to_watch")

logger = logging.getLogger("django_asyncbridge.serving")

# Directories of that name hold what programs have written, many thousands of files at times.
_SKIPPED_NAMES = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
# Django's own watcher takes that long; looking at all files more often costs a noticeable part of a processor.
_SCAN_SECONDS = 1.0
# Not measured: much more than it takes for a project. Then the server starts without waiting any longer.
_START_SECONDS = 10.0

_Snapshot = dict[str, int]


def directories_to_watch(apps: Iterable[str | Path], current: str | Path) -> list[Path]:
    """Return the directories where the project's own code is: the current one, and those of apps that are not installed packages.

    One that is inside another is left out.

    Args:
        apps: the directories of the Django apps, ``config.path`` of each of ``apps.get_app_configs()``.
        current: the current directory. It is watched wherever it is.
    """
    here = Path(current).resolve()
    wanted = {here}
    wanted.update(path for app in apps if not _is_installed(path := Path(app).resolve()))
    return sorted(path for path in wanted if path.is_dir() and wanted.isdisjoint(path.parents))


def _is_installed(path: Path) -> bool:
    if not _SKIPPED_NAMES.isdisjoint(path.parts):
        return True
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return path.is_relative_to(library) or _is_in_environment(path)


def _is_in_environment(path: Path) -> bool:
    """Tell whether a path is inside the virtual environment; the system's own prefix has room for projects, as /usr/src."""
    return sys.prefix != sys.base_prefix and path.is_relative_to(Path(sys.prefix).resolve())


class _Files:
    """Which files count: those below the watched directories whose name fits, and that no program has put there.

    Nothing changes here once it is made; any thread may call all of it.

    Args:
        directories: resolved, where the files are.
        patterns: of their names.
    """

    def __init__(self, directories: Iterable[Path], patterns: Iterable[str]) -> None:
        self._roots = tuple(directories)
        self._patterns = tuple(patterns)

    def wants(self, path: str) -> bool:
        """Tell whether a change of the file at `path` counts."""
        return any(
            self._is_open_way(root, Path(path).parent) for root in self._roots
        ) and self._fits(Path(path).name)

    def snapshot(self) -> _Snapshot:
        """Look at all files that count: when each was changed, in nanoseconds."""
        return {path: stamp for root in self._roots for path, stamp in self._below(root)}

    def _below(self, root: Path) -> Iterator[tuple[str, int]]:
        for directory, inner, names in os.walk(root):
            inner[:] = [name for name in inner if self._is_open(Path(directory, name), root)]
            for name in filter(self._fits, names):
                path = Path(directory, name)
                try:
                    stamp = path.stat().st_mtime_ns
                except OSError:
                    continue  # it has gone since, or leads nowhere
                yield str(path), stamp

    def _is_open_way(self, root: Path, directory: Path) -> bool:
        """Tell whether `directory` is `root`, or all on the way down to it are open."""
        way = [directory, *directory.parents]
        if root not in way:
            return False
        return all(self._is_open(one, root) for one in way[: way.index(root)])

    def _is_open(self, directory: Path, root: Path) -> bool:
        """Tell whether to look into a directory below `root`."""
        name = directory.name
        if name.startswith(".") or name in _SKIPPED_NAMES:
            return False
        # A whole project may live inside the environment; then that is no reason to leave anything out.
        return _is_in_environment(root) or not _is_in_environment(directory)

    def _fits(self, name: str) -> bool:
        # Editors put their own files beside the one that is edited; their names begin with a dot.
        return not name.startswith(".") and any(
            fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns
        )


class Changes:
    """Looks for changed files, from `start` to `close`, in a thread of its own.

    Args:
        directories: where to look, and in all below: `directories_to_watch`. Hidden directories, those of virtual environments and
            caches are left out.
        includes: patterns of file names that count beside ``*.py``, as ``*.html``.
    """

    def __init__(self, directories: Sequence[Path], includes: Iterable[str] = ()) -> None:
        # Resolved, as some systems report them.
        self._directories = [path.resolve() for path in directories if path.is_dir()]
        self._files = _Files(self._directories, ("*.py", *includes))
        self._found: queue.SimpleQueue[set[str]] = queue.SimpleQueue()
        self._looking = _Stop()
        self._thread: threading.Thread | None = None
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        # A full pipe wakes the reader as well as one byte does.
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return a file descriptor that can be read when there is something to `take`."""
        return self._reader

    def start(self) -> None:
        """Begin to look, and return when no change can be missed any more; at once if it was begun before."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._look, name="asyncbridge-changes-1", daemon=True
            )
            self._thread.start()
            self._looking.begun.wait(_START_SECONDS)

    def take(self) -> list[Path]:
        """Return the files that have changed since the last time, sorted; none if there are none."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
        paths: set[str] = set()
        with contextlib.suppress(queue.Empty):
            while True:
                paths |= self._found.get_nowait()
        return sorted(Path(path) for path in paths)

    def close(self) -> None:
        """Stop looking, and wait for the thread to end; again changes nothing."""
        self._looking.set()
        if self._thread is not None:
            self._thread.join()
        for fd in (self._reader, self._writer):
            if fd != -1:
                os.close(fd)
        self._reader = self._writer = -1

    # --- In its own thread ---------------------------------------------------------

    def _look(self) -> None:
        """Hand over what changes, until told to stop."""
        for paths in self._changes():
            wanted = {path for path in paths if self._files.wants(path)}
            if wanted:
                self._found.put(wanted)
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writer, b"c")

    def _changes(self) -> Iterator[set[str]]:
        watch = _watchfiles()
        if watch is not None:
            try:
                yield from watch(self._directories, self._looking)
            # TypeError: an old version does not know an option.
            except (OSError, RuntimeError, TypeError) as error:
                logger.warning(
                    "The system does not watch the files (%s); they are looked at every %g s.",
                    in_one_line(error),
                    _SCAN_SECONDS,
                )
            else:
                return  # it was told to stop
        yield from _scan(self._files, self._looking)


class _Stop(threading.Event):
    """The event that ends a watcher, which knows when the watcher has begun.

    A watcher asks between two looks whether it shall stop, so the first such question says that it looks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def is_set(self) -> bool:
        """Return whether to stop."""
        self.begun.set()
        return super().is_set()


def _scan(files: _Files, stop: _Stop) -> Iterator[set[str]]:
    """Yield what has changed, by looking at all files over and over."""
    before = files.snapshot()
    while not stop.is_set():
        stop.wait(_SCAN_SECONDS)
        now = files.snapshot()
        # New ones and those that are gone, too.
        yield {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
        before = now


_Watch = Callable[[Sequence[Path], _Stop], Iterator[set[str]]]


def _watchfiles() -> _Watch | None:
    """Return a watcher on watchfiles, or None where that is not installed."""
    try:
        watchfiles = importlib.import_module("watchfiles")
    except ImportError:
        return None

    def watch(directories: Sequence[Path], stop: _Stop) -> Iterator[set[str]]:
        # rust_timeout 0: wait until something changes. What changes in the moment of a timeout would be lost.
        found = watchfiles.watch(
            *directories,
            watch_filter=None,
            stop_event=stop,
            rust_timeout=0,
            ignore_permission_denied=True,
        )
        for changes in found:
            yield {path for _kind, path in changes}

    return watch
