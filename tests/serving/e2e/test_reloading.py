"""Code that changes is served without starting anything by hand."""

from pathlib import Path

import pytest

from tests.serving.e2e.conftest import Servers
from tests.serving.e2e.servers import Server, complaints, until

SETTINGS = """
from tests.serving.e2e.settings import *
ROOT_URLCONF = "changing"
"""

URLS = """
from django.http import HttpResponse
from django.urls import path

from tests.serving.e2e import site

def page(request):
    return HttpResponse({text!r})

urlpatterns = [path("page/", page), *site.urlpatterns]
"""


class Project:
    """A project whose page can be changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "changing_settings.py").write_text(SETTINGS)

    def write(self, source: str) -> None:
        (self.directory / "changing.py").write_text(source)

    def show(self, text: str) -> None:
        self.write(URLS.format(text=text))

    def serve(self, start: Servers, *args: str, **env: str) -> Server:
        return start(
            "0",
            *args,
            cwd=self.directory,
            DJANGO_SETTINGS_MODULE="changing_settings",
            # A cached module counts as fresh if its source has the same size and was changed in the same second.
            PYTHONDONTWRITEBYTECODE="1",
            **env,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.show("first")
    return project


def becomes(server: Server, text: bytes) -> None:
    """Wait until the page has that text; nobody who asks meanwhile is cut off."""
    until(lambda: server.fetch("/page/") == text)


def test_change_is_served_and_broken_code_waits_for_the_next_change(
    start: Servers, project: Project
) -> None:
    server = project.serve(start, "--reload")
    assert server.fetch("/page/") == b"first"
    project.show("second")
    becomes(server, b"second")
    assert complaints(server.lines) == []
    project.write("def page(:\n")
    server.wait_for("SyntaxError")
    project.show("mended")
    becomes(server, b"mended")
    assert server.stop() == 0


def test_debug_reloads_unless_told_not_to(start: Servers, project: Project) -> None:
    server = project.serve(start, E2E_DEBUG="1")
    other = project.serve(start, "--noreload", E2E_DEBUG="1")
    assert server.fetch("/page/") == other.fetch("/page/") == b"first"
    project.show("second")
    becomes(server, b"second")
    assert other.fetch("/page/") == b"first"
    assert server.stop() == other.stop() == 0
