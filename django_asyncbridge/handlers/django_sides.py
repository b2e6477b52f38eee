"""`condition_of`: which of Django's own middleware hooks and signal receivers never block, and under which condition.

A table names each by where Django defines it, with a condition: called with what the hook is called with, it tells
whether this very call touches no database, file or network and computes only a little. What is not in the table may block.

Hard rules. A condition blocks nowhere, changes nothing (a session that it looks at was not accessed), and says True only if nothing
that another thread does meanwhile makes it wrong. It reads settings at each call, for tests override them. Only Django's own code is
known (`django_code`): a class that overrides what a hook calls is other code, and so is a hook that was replaced.

Left out, since nothing certain can be told: ``LocaleMiddleware.process_request`` (languages and catalogs come from the disk,
and the caches before them do not say what they hold), ``CurrentSiteMiddleware`` with sites installed (another thread may
clear the cache of sites), ``RemoteUserMiddleware`` (it asks for the user), a request that has to prove that it is no forgery.

Which thread may touch what. `condition_of` is asked while middlewares are loaded. Conditions are asked on the event loop, in the context
of the request; they read the request, the response and the settings.

Source: Django's sources, 5.2 to 6.1.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.utils.functional import SimpleLazyObject, empty

from django_asyncbridge.handlers.django_code import class_of, is_djangos, path_of
from django_asyncbridge.handlers.django_stores import (
    closes_no_cache,
    has_nothing_open,
    is_in_memory,
    opens_no_storage,
    opens_no_store,
    saves_no_session,
    stores_no_message,
)
from django_asyncbridge.handlers.sides import Condition, never_blocks

__all__ = ("condition_of",)


def condition_of(hook: Callable[..., Any]) -> Condition | None:
    """Return the condition under which a call of one of Django's own hooks or receivers never blocks.

    Args:
        hook: a bound method of a middleware, or a function that is connected to a signal.

    Returns:
        What tells it when called with the hook's arguments, `never_blocks` if that is so always, None if nothing is known.
    """
    if not isinstance(hook, types.MethodType):
        return _RECEIVERS.get(path_of(hook))
    condition = _HOOKS.get(path_of(hook.__func__))
    if condition is None or not is_djangos(hook):
        return None
    return functools.partial(condition, hook.__self__) if condition is opens_no_store else condition


# --- CSRF ----------------------------------------------------------------------------------


def _secret_is_at_hand(request: Any) -> bool:
    return not settings.CSRF_USE_SESSIONS or is_in_memory(getattr(request, "session", None))


def _accepts_unseen(request: Any, view: object, _args: object, _kwargs: object) -> bool:
    """``CsrfViewMiddleware.process_view``: there is no form to be parsed, and no refusal to be rendered."""
    return (
        request.method in ("GET", "HEAD", "OPTIONS", "TRACE")
        or bool(getattr(view, "csrf_exempt", False))
        or getattr(request, "csrf_processing_done", False)
        or getattr(request, "_dont_enforce_csrf_checks", False)
    )


def _keeps_secret_at_hand(request: Any, _response: object) -> bool:
    return not request.META.get("CSRF_COOKIE_NEEDS_UPDATE") or _secret_is_at_hand(request)


# --- Users ----------------------------------------------------------------------------------

_LAZY_USER = "django.contrib.auth.middleware.AuthenticationMiddleware.process_request."
_USERS = ("django.contrib.auth.models.", "django.contrib.auth.base_user.")
# Before, the user was asked for first, also for views that need none.
_ASKS_VIEW_FIRST = django.VERSION >= (6, 0)


def _user_is_at_hand(request: Any, view: object, _args: object, _kwargs: object) -> bool:
    """``LoginRequiredMiddleware.process_view``: the view needs no user, or it is known who it is."""
    if _ASKS_VIEW_FIRST and not getattr(view, "login_required", True):
        return True
    user = getattr(request, "user", None)
    if type(user) is SimpleLazyObject:
        lazy = vars(user)
        user = lazy["_wrapped"]
        if user is empty:
            return _is_user_of(request, lazy["_setupfunc"]) and _finds_user_at_once(request)
    return _is_plain_user(class_of(user))


def _is_user_of(request: object, load: Any) -> bool:
    return path_of(load).startswith(_LAZY_USER) and load.__closure__[0].cell_contents is request


def _finds_user_at_once(request: Any) -> bool:
    if hasattr(request, "_cached_user"):
        return _is_plain_user(class_of(request._cached_user))
    session: Any = getattr(request, "session", None)
    if not is_in_memory(session):
        return False
    data = vars(session).get("_session_cache")
    # Where nobody has logged in there is nothing to load.
    return session.session_key is None if data is None else SESSION_KEY not in data


@functools.lru_cache(maxsize=64)  # as for the stores
def _is_plain_user(cls: type) -> bool:
    """Tell whether ``is_authenticated`` is the constant that Django's users have."""
    getter = getattr(getattr(cls, "is_authenticated", None), "fget", None)
    # The static look-up: a class may intercept the other.
    intercepts = any("__getattribute__" in vars(base) for base in cls.__mro__[:-1])
    return path_of(getter).startswith(_USERS) and not intercepts


def _needs_no_user(request: Any, _view: object, _args: object, _kwargs: object) -> bool:
    return bool(request.method != "HEAD")


# --- Languages -------------------------------------------------------------------------------

# The setting LANGUAGES, and how its codes begin.
_languages: tuple[object, frozenset[str]] = (None, frozenset())


def _beginnings(languages: Any) -> frozenset[str]:
    global _languages
    if _languages[0] is not languages:
        _languages = (languages, frozenset(_beginning(code) for code, _name in languages))
    return _languages[1]


def _beginning(code: str) -> str:
    return code.partition("-")[0].lower()


def _looks_for_no_catalog(request: Any, response: Any) -> bool:
    """``LocaleMiddleware.process_response``: the path does not begin as a language that may have to be looked for."""
    first = request.path_info.removeprefix("/").partition("/")[0]
    return _is_found(request, response) and _beginning(first) not in _beginnings(settings.LANGUAGES)


# --- Other middlewares -----------------------------------------------------------------------

# What is compressed or hashed at once; not measured.
_SMALL_BYTES = 16 * 1024


def _is_found(_request: object, response: Any) -> bool:
    return getattr(response, "status_code", None) != 404


def _mails_nobody(request: Any, response: Any) -> bool:
    """``BrokenLinkEmailsMiddleware``: no link led here."""
    return _is_found(request, response) or settings.DEBUG or not request.META.get("HTTP_REFERER")


def _is_small(response: Any) -> bool:
    if getattr(response, "streaming", False):
        # That is compressed while it is sent.
        return True
    return getattr(response, "is_rendered", True) and (
        len(getattr(response, "content", b"")) <= _SMALL_BYTES
    )


def _hashes_little(request: Any, response: Any) -> bool:
    return request.method != "GET" or _is_small(response) or response.has_header("ETag")


def _compresses_little(request: Any, response: Any) -> bool:
    return "gzip" not in request.META.get("HTTP_ACCEPT_ENCODING", "") or _is_small(response)


def _has_no_sites(_request: object) -> bool:
    return not apps.is_installed("django.contrib.sites")


def _is_not_to_be_cached(request: Any, _response: object) -> bool:
    return not getattr(request, "_cache_update_cache", False)


def _is_not_from_cache(request: Any) -> bool:
    return request.method not in ("GET", "HEAD")


# --- The table -------------------------------------------------------------------------------

_RECEIVERS: dict[str, Condition] = {
    "django.core.cache.close_caches": closes_no_cache,
    "django.core.handlers.base.reset_urlconf": never_blocks,
    "django.db.close_old_connections": has_nothing_open,
    "django.db.reset_queries": never_blocks,
}

_MIDDLEWARES: dict[str, dict[str, Condition]] = {
    "contrib.admindocs.middleware.XViewMiddleware": {"process_view": _needs_no_user},
    "contrib.auth.middleware.AuthenticationMiddleware": {"process_request": never_blocks},
    "contrib.auth.middleware.LoginRequiredMiddleware": {"process_view": _user_is_at_hand},
    "contrib.flatpages.middleware.FlatpageFallbackMiddleware": {"process_response": _is_found},
    "contrib.messages.middleware.MessageMiddleware": {
        "process_request": opens_no_storage,
        "process_response": stores_no_message,
    },
    "contrib.redirects.middleware.RedirectFallbackMiddleware": {"process_response": _is_found},
    "contrib.sessions.middleware.SessionMiddleware": {
        "process_request": opens_no_store,
        "process_response": saves_no_session,
    },
    "contrib.sites.middleware.CurrentSiteMiddleware": {"process_request": _has_no_sites},
    "middleware.cache.FetchFromCacheMiddleware": {"process_request": _is_not_from_cache},
    "middleware.cache.UpdateCacheMiddleware": {"process_response": _is_not_to_be_cached},
    "middleware.clickjacking.XFrameOptionsMiddleware": {"process_response": never_blocks},
    "middleware.common.BrokenLinkEmailsMiddleware": {"process_response": _mails_nobody},
    "middleware.common.CommonMiddleware": {
        "process_request": never_blocks,
        "process_response": never_blocks,
    },
    # From Django 6.0 on.
    "middleware.csp.ContentSecurityPolicyMiddleware": {
        "process_request": never_blocks,
        "process_response": never_blocks,
    },
    "middleware.csrf.CsrfViewMiddleware": {
        "process_request": _secret_is_at_hand,
        "process_view": _accepts_unseen,
        "process_response": _keeps_secret_at_hand,
    },
    "middleware.gzip.GZipMiddleware": {"process_response": _compresses_little},
    "middleware.http.ConditionalGetMiddleware": {"process_response": _hashes_little},
    "middleware.locale.LocaleMiddleware": {"process_response": _looks_for_no_catalog},
    "middleware.security.SecurityMiddleware": {
        "process_request": never_blocks,
        "process_response": never_blocks,
    },
}

_HOOKS = {
    f"django.{middleware}.{hook}": condition
    for middleware, hooks in _MIDDLEWARES.items()
    for hook, condition in hooks.items()
}
