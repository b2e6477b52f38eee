"""The pytest plugin: async tests and their fixtures use one thread, and so one database connection and one transaction.

It enters `testing.home_thread` for all tests of a run, if the project has this app in ``INSTALLED_APPS`` and does not set
``asyncbridge_home_thread = false``. pytest loads it wherever the package is installed, so it imports nothing of Django's, and
of ours only once that is settled.
"""

import sys
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ("pytest_addoption", "pytest_runtestloop")

_OPTION = "asyncbridge_home_thread"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini(
        _OPTION,
        "Run thread-sensitive sync code of async tests in the thread of the test, so that it shares the test's "
        "database transaction.",
        type="bool",
        default=True,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
    """Make the thread that runs the tests home for all of them, fixtures of any scope included."""
    if not (session.config.getini(_OPTION) and _is_app_installed()):
        return (yield)
    # Not at the top: see there.
    from django_asyncbridge.testing import home_thread  # noqa: PLC0415

    with home_thread():
        return (yield)


def _is_app_installed() -> bool:
    # By now whatever sets Django up has imported it: pytest-django, or a conftest.
    registry = sys.modules.get("django.apps")
    if registry is None or not registry.apps.ready:
        return False
    return bool(registry.apps.is_installed("django_asyncbridge"))
