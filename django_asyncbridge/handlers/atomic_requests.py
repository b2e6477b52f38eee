"""``ATOMIC_REQUESTS`` for async views, whichever of Django's handlers calls them: also those of test clients and runserver.

Django's handlers refuse such views in one method of their common base. `install` has it wrap them in `aatomic` instead; sync
views go Django's way.

Which thread may touch what. Installing is for start-up and tests.
"""

import functools
from collections.abc import Callable
from typing import Any

from django.core.handlers.base import BaseHandler

from django_asyncbridge.bridge.sync import iscoroutinefunction
from django_asyncbridge.db import atomic_request_view

__all__ = ("install", "uninstall")

_View = Callable[..., Any]
_django_s: Callable[[BaseHandler, _View], _View] = BaseHandler.make_view_atomic


@functools.wraps(_django_s)
def _make_view_atomic(handler: BaseHandler, view: _View) -> _View:
    return atomic_request_view(view) if iscoroutinefunction(view) else _django_s(handler, view)


def install() -> None:
    """Have async views run in a transaction for each database with ``ATOMIC_REQUESTS``; again does nothing."""
    BaseHandler.make_view_atomic = _make_view_atomic  # type: ignore[method-assign, assignment]  # that is what this is for


def uninstall() -> None:
    """Have Django refuse such views again."""
    BaseHandler.make_view_atomic = _django_s  # type: ignore[method-assign, assignment]  # as above
