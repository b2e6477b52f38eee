"""Code of a project that blocks where Django's own does not: what `django_sides` must not take for Django's."""

import time
from typing import Any, NoReturn

from django.contrib.auth.models import AnonymousUser
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.sessions.backends import db
from django.core.cache.backends.locmem import LocMemCache
from django.core.signing import JSONSerializer, TimestampSigner


def block(*_args: object, **_kwargs: object) -> NoReturn:
    """Block, as far as the detector is concerned."""
    time.sleep(0)
    raise AssertionError


def slow_text() -> str:
    """Return a text that has to be looked for."""
    time.sleep(0)
    return "text"


class Signer(TimestampSigner):
    """A signer that asks a server for its keys."""

    __init__ = block


class Storage(CookieStorage):
    """Messages kept elsewhere."""

    __init__ = block


class LateStorage(CookieStorage):
    """Messages that are stored elsewhere."""

    update = block


class User(AnonymousUser):
    """A user that has to be asked for."""

    is_authenticated: Any = property(block)


class Cache(LocMemCache):
    """A cache with a connection that has to be closed."""

    close = block


class OpeningCache(LocMemCache):
    """A cache that connects when it is made."""

    __init__ = block


class SessionStore(db.SessionStore):
    """Sessions of a store that connects when it is made."""

    __init__ = block


class LateStore(db.SessionStore):
    """Sessions of a store that does not know whether it is empty."""

    is_empty = block


class Serializer(JSONSerializer):
    """A serializer that writes a log."""

    dumps = block
