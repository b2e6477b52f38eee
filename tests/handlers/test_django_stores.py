"""`django_stores`: which session stores, caches and message storages are known."""

from typing import Any

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest

from django_asyncbridge.handlers import django_stores
from django_asyncbridge.handlers.django_sides import condition_of
from tests.handlers import slow_code
from tests.handlers.django_calls import view


def test_condition_asks_the_store_that_the_middleware_has_now() -> None:
    middleware = SessionMiddleware(view)
    condition: Any = condition_of(middleware.process_request)
    assert condition(HttpRequest())
    middleware.SessionStore = slow_code.SessionStore
    assert not condition(HttpRequest())


class ExtendedStore(SessionStore):
    """As Django's documentation has it."""

    @classmethod
    def get_model_class(cls) -> Any:
        raise AssertionError


class OwnNew(SessionStore):
    def __new__(cls, *args: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("store", "kind"),
    [
        (ExtendedStore, "db"),
        (OwnNew, None),
        (slow_code.SessionStore, None),
        (slow_code.LateStore, None),
        (dict, None),
    ],
)
def test_session_store_is_known_unless_it_has_code_of_its_own(
    store: type, kind: str | None
) -> None:
    assert django_stores._kind_of_store(store) == kind
