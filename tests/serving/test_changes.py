"""Tests of `django_asyncbridge.serving._changes`."""

import contextlib
import os
import select
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest

from django_asyncbridge.serving import _changes
from django_asyncbridge.serving._changes import Changes, directories_to_watch

LIMIT_SECONDS = 30

Make = Callable[..., Changes]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make watchers that are started, and close them in the end."""
    made: list[Changes] = []

    def make(*directories: Path, includes: tuple[str, ...] = ()) -> Changes:
        made.append(Changes(directories, includes))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["watchfiles", "scan"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have both ways of looking."""
    name: str = request.param
    if name == "scan":
        monkeypatch.setattr(_changes, "_SCAN_SECONDS", 0.01)
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    return name


def taken(changes: Changes, wanted: set[Path]) -> None:
    """Wait until the files have been reported; nothing else may be."""
    seen: set[Path] = set()
    while seen != wanted:
        ready, _, _ = select.select([changes], [], [], LIMIT_SECONDS)
        assert ready, f"only {seen}"
        seen.update(changes.take())
        assert seen <= wanted


def fill(pipe: int) -> None:
    """Write until not one byte fits any more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 65536)


@pytest.mark.usefixtures("way")
def test_changes_reports_what_is_changed_added_and_removed(make: Make, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    old, new, gone = one / "old.py", one / "new.py", other / "gone.py"
    old.write_text("1")
    gone.write_text("1")

    changes = make(one, other)
    assert changes.take() == []
    old.write_text("2 = longer")
    os.utime(old, ns=(1, 1))
    new.write_text("1")
    gone.unlink()

    taken(changes, {old, new, gone})


@pytest.mark.usefixtures("way")
def test_changes_leaves_out_what_is_not_the_projects(make: Make, tmp_path: Path) -> None:
    for name in (".git", "__pycache__", "node_modules", "app"):
        (tmp_path / name).mkdir()
    page = tmp_path / "app" / "page.html"

    changes = make(tmp_path, includes=("*.html",))
    for name in (".git/a.py", "__pycache__/a.py", "node_modules/a.py", ".#a.py", "a.txt"):
        (tmp_path / name).write_text("1")
    page.write_text("1")

    taken(changes, {page})


def test_changes_leaves_out_the_virtual_environment_unless_the_project_is_in_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "env"
    project = environment / "project"
    project.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(environment))

    outer, inner = make(tmp_path), make(project)
    (environment / "a.py").write_text("1")
    (project / "b.py").write_text("1")
    (tmp_path / "c.py").write_text("1")

    taken(outer, {tmp_path / "c.py"})
    taken(inner, {project / "b.py"})


def test_changes_looks_at_all_files_where_the_system_refuses(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise OSError("the limit of watches is reached")

    monkeypatch.setattr("watchfiles.watch", refuse)
    monkeypatch.setattr(_changes, "_SCAN_SECONDS", 0.01)

    changes = make(tmp_path)
    (tmp_path / "a.py").write_text("1")

    taken(changes, {tmp_path / "a.py"})
    assert "the limit of watches is reached" in caplog.text


def test_changes_of_a_link_that_leads_nowhere_are_none(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_changes, "_SCAN_SECONDS", 0.01)
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    (tmp_path / "a.py").symlink_to(tmp_path / "nothing.py")

    changes = make(tmp_path)
    (tmp_path / "nothing.py").write_text("1")

    taken(changes, {tmp_path / "a.py", tmp_path / "nothing.py"})


def test_changes_that_nobody_takes_do_not_block(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, go = threading.Event(), threading.Event()

    def many(_directories: object, stop: threading.Event) -> Iterator[set[str]]:
        stop.is_set()
        assert go.wait(LIMIT_SECONDS)
        yield {str(tmp_path / "a.py")}
        full.set()

    monkeypatch.setattr(_changes, "_watchfiles", lambda: many)
    changes = make(tmp_path)
    fill(changes._writer)
    go.set()

    assert full.wait(LIMIT_SECONDS)
    assert changes.take() == [tmp_path / "a.py"]


def test_start_and_close_again_change_nothing(make: Make, tmp_path: Path) -> None:
    changes = make(tmp_path)
    changes.start()

    changes.close()
    changes.close()

    assert not [one for one in threading.enumerate() if one.name == "asyncbridge-changes-1"]


def test_close_without_start_closes_the_pipe(tmp_path: Path) -> None:
    changes = Changes([tmp_path, tmp_path / "not there"])

    changes.close()

    assert changes.fileno() == -1


def test_directories_to_watch_are_the_current_one_and_those_of_own_apps(tmp_path: Path) -> None:
    project, library = tmp_path / "project", tmp_path / "library"
    for path in (project / "shop", library / "inner", tmp_path / "x" / "site-packages" / "y"):
        path.mkdir(parents=True)
    apps: list[str | Path] = [
        project / "shop",
        str(library),
        library / "inner",
        tmp_path / "not there",
        tmp_path / "x" / "site-packages" / "y",
        Path(sysconfig.get_path("stdlib"), "json"),
        Path(django.__file__).parent / "contrib" / "admin",
    ]

    assert directories_to_watch(apps, project) == [library, project]
