"""Sessions, messages, caches and connections: when Django's middlewares and receivers touch them without blocking.

The conditions of `django_sides` that depend on the class which a setting names. Only Django's own classes are known, and subclasses that
override nothing that matters here; what is known of a class is found once.

Hard rules. As in `django_sides`: a condition blocks nowhere, changes nothing, and never guesses.

Which thread may touch what. Everything is asked on the event loop, in the context of the request.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.messages.storage.session import SessionStorage
from django.contrib.sessions.serializers import JSONSerializer
from django.core.cache import BaseCache, caches
from django.db import connections
from django.utils.safestring import SafeString

from django_asyncbridge.handlers.django_code import (
    ancestors,
    class_of,
    find_loaded,
    overrides_nothing,
)

__all__ = (
    "closes_no_cache",
    "has_nothing_open",
    "is_in_memory",
    "opens_no_storage",
    "opens_no_store",
    "saves_no_session",
    "stores_no_message",
)


# --- Connections and caches --------------------------------------------------------------

# Those whose constructor opens and creates nothing, each with the library that it imports.
_MEMCACHED = "django.core.cache.backends.memcached"
_CACHES = {
    "django.core.cache.backends.db.DatabaseCache": None,
    "django.core.cache.backends.dummy.DummyCache": None,
    "django.core.cache.backends.locmem.LocMemCache": None,
    "django.core.cache.backends.redis.RedisCache": None,
    f"{_MEMCACHED}.PyMemcacheCache": "pymemcache.serde.pickle_serde",
    f"{_MEMCACHED}.PyLibMCCache": "pylibmc.NotFound",
}


def has_nothing_open(**_named: object) -> bool:
    """``close_old_connections``: in this thread; those of the request's thread are looked after when it is given back."""
    return all(one.connection is None for one in _made(connections))


def closes_no_cache(**_named: object) -> bool:
    """``close_caches``: none of the caches of this context does anything then."""
    return all(getattr(one.close, "__func__", None) is BaseCache.close for one in _made(caches))


def _made(handler: Any) -> Iterator[Any]:
    """Yield the connections, or caches, that there are in this context; Django's own way asks twice for each."""
    for alias in handler.settings:
        one = getattr(handler._connections, alias, None)
        if one is not None:
            yield one


def _opens_no_cache(alias: str) -> bool:
    """Tell whether ``caches[alias]`` is there already, or made without I/O."""
    handler: Any = caches
    if hasattr(handler._connections, alias):
        return True
    params = handler.settings.get(alias, {})
    backend, key_function = params.get("BACKEND"), params.get("KEY_FUNCTION")
    if backend not in _CACHES or find_loaded(backend) is None:
        return False
    imported = (_CACHES[backend], key_function)
    return all(find_loaded(one) is not None for one in imported if isinstance(one, str))


# --- Sessions -----------------------------------------------------------------------------

_STORES = {
    f"django.contrib.sessions.backends.{kind}.SessionStore": kind
    for kind in ("cache", "cached_db", "db", "file", "signed_cookies")
}
# What Django's documentation tells to override. None of it runs before a session is loaded or saved.
_EXTENSIONS = frozenset({"get_model_class", "create_model_instance", "acreate_model_instance"})


# A process has one or two; tests have more.
@functools.lru_cache(maxsize=64)
def _kind_of_store(cls: type) -> str | None:
    """Return which of Django's session stores a class is, None if it is another."""
    for path, base in ancestors(cls):
        if path in _STORES:
            if _is_made_alike(cls, base) and overrides_nothing(cls, base, _EXTENSIONS):
                return _STORES[path]
            break
    return None


def _is_made_alike(cls: Any, base: Any) -> bool:
    return cls.__init__ is base.__init__ and cls.__new__ is object.__new__


def opens_no_store(middleware: Any, _request: object) -> bool:
    """``SessionMiddleware.process_request``: it makes a store, which loads nothing yet."""
    store = middleware.SessionStore
    kind = _kind_of_store(store)
    if kind is None or find_loaded(settings.SESSION_SERIALIZER) is None:
        return False
    if kind in ("cache", "cached_db"):
        return _opens_no_cache(settings.SESSION_CACHE_ALIAS)
    # The first of its class looks whether the directory is there.
    return kind != "file" or hasattr(store, "_storage_path")


def saves_no_session(request: Any, _response: object) -> bool:
    """``SessionMiddleware.process_response``: it saves what was changed, unless it is empty."""
    session = getattr(request, "session", None)
    if session is None:
        return True
    if _kind_of_store(class_of(session)) is None:
        return False
    to_save = session.modified or settings.SESSION_SAVE_EVERY_REQUEST
    return not to_save or session.is_empty() or _is_in_cookie(session)


def _is_in_cookie(session: Any) -> bool:
    """Tell whether loading and saving a session only computes."""
    return (
        _kind_of_store(class_of(session)) == "signed_cookies"
        and session.serializer is JSONSerializer
    )


def is_in_memory(session: Any) -> bool:
    """Tell whether reading and changing a session is known to load nothing."""
    return _kind_of_store(class_of(session)) is not None and (
        "_session_cache" in vars(session) or session.session_key is None or _is_in_cookie(session)
    )


# --- Messages --------------------------------------------------------------------------------

_STORAGES: dict[Any, str] = {
    CookieStorage: "cookie",
    FallbackStorage: "fallback",
    SessionStorage: "session",
}
_SIGNER = "django.core.signing.TimestampSigner"
# Lazy texts are not among them: they may load a catalog.
_TEXTS = (str, SafeString, types.NoneType)


@functools.lru_cache(maxsize=64)  # as for the stores
def _kind_of_storage(cls: type) -> str | None:
    """Return which of Django's message storages a class is, None if it is another."""
    kind = _STORAGES.get(cls)
    return kind if kind is not None and overrides_nothing(cls, cls) else None


def opens_no_storage(_request: object) -> bool:
    """``MessageMiddleware.process_request``: it makes a storage, which reads nothing yet, and a signer."""
    storage = find_loaded(settings.MESSAGE_STORAGE)
    return (
        isinstance(storage, type)
        and _kind_of_storage(storage) is not None
        and settings.SIGNING_BACKEND == _SIGNER
    )


def stores_no_message(request: Any, _response: object) -> bool:
    """``MessageMiddleware.process_response``: there is nothing to store, or it goes where no I/O is."""
    if not hasattr(request, "_messages"):
        return True
    storage = request._messages
    kind = _kind_of_storage(class_of(storage))
    if kind is None or not (storage.used or storage.added_new):
        return kind is not None
    return (kind == "cookie" or is_in_memory(getattr(request, "session", None))) and all(
        type(one.message) in _TEXTS and type(one.extra_tags) in _TEXTS
        for one in storage._queued_messages
    )
