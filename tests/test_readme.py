"""README and guides: commands, paths and examples are real."""

import contextvars
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from django.core.management import get_commands

import django_asyncbridge
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = ["README.md", "CHANGELOG.md", "benchmarks/README.md"] + [
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))
]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page that are in that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


SERVE, TEST = (block for block in blocks("README.md", "console") if "venv" in block)
EXAMPLES = [
    pytest.param(page, source, id=f"{page}-{number}")
    for page in PAGES
    for number, source in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.parametrize("command", [SERVE, TEST], ids=["serve", "test"])
def test_readme_command_is_one_line_that_makes_an_environment_and_installs(command: str) -> None:
    assert len(command.splitlines()) == 1
    make, install, *_ = command.split(" && ")
    assert make == "python3 -m venv .venv"
    assert shlex.split(install)[:3] == [".venv/bin/pip", "install", "-e"]
    [extras] = re.findall(r"^\.\[(.+)\]$", shlex.split(install)[3])
    assert set(extras.split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def test_readme_serve_command_makes_the_tables_and_serves() -> None:
    steps = [shlex.split(step) for step in SERVE.split(" && ")[2:]]
    assert [step[:2] for step in steps] == [[".venv/bin/python", "manage.py"]] * 2
    assert [step[2] for step in steps] == ["migrate", "runasgi"]
    assert (ROOT / "manage.py").exists()
    assert {step[2] for step in steps} <= set(get_commands())


def test_readme_test_command_is_the_line_that_ci_runs() -> None:
    assert TEST.rstrip().endswith(" && .venv/bin/python -m pytest")
    assert [line for line in README.splitlines() if line.endswith("-m pytest")] == [TEST.rstrip()]
    assert "grep -m1 -e '-m pytest$' README.md" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_readme_says_what_it_is_for_in_three_sentences() -> None:
    introduction = README.split("\n## ")[0].split("\n", 1)[1]
    assert len(re.findall(r"[^\d]\.(?=\s)", introduction)) == 3


@pytest.mark.parametrize("page", PAGES)
def test_page_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_paths_exist() -> None:
    paths = re.findall(r"`([\w.-]+/[\w./-]*)`", README)
    assert {"testproject/", "docs/", "benchmarks/", ".ci/run"} <= set(paths)
    for path in paths:
        assert path == ".venv/bin/" or Path(ROOT, path).exists(), path


def test_readme_tox_environment_is_one_of_those_configured() -> None:
    configured = PYPROJECT["tool"]["tox"]
    assert configured["env_list"] == list(configured["env"])
    for name in re.findall(r"tox run -e ([\w-]+)", README):
        assert name in configured["env_list"]


def test_changelog_begins_with_the_version_of_the_package() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.M)[0] == django_asyncbridge.__version__


@pytest.mark.parametrize(("page", "source"), EXAMPLES)
def test_example_runs(page: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    # As in a new program: nothing that other tests may have left in this thread's context.
    code = compile(source, page, "exec")
    contextvars.Context().run(exec, code, {"__name__": "example"})
    assert "Error" not in capsys.readouterr().out
