"""The table of all shapes of middleware, and where ``settings.MIDDLEWARE`` finds them.

An attribute of this module, such as ``function_both__2``, is the shape of that name, made anew for place 2 of a stack.

Which thread may touch what. The tables do not change; `standing_in` is for the thread of the test.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import django

from tests.handlers.differential.hooks import MIXINS, ODD_HOOKS, Shape
from tests.handlers.differential.specials import SPECIALS, UNUSABLE
from tests.handlers.differential.wraps import ODD_WRAPS, WRAPS

__all__ = (
    "DJANGOS",
    "ODD",
    "PASSING",
    "SHAPES",
    "STARTPROJECT",
    "UNUSABLE",
    "path_of",
    "standing_in",
)

STARTPROJECT = (
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)
DJANGOS = (
    *(path for path in STARTPROJECT if "auth" not in path and "messages" not in path),
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
    "django.middleware.common.BrokenLinkEmailsMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware",
    *(
        ["django.middleware.csp.ContentSecurityPolicyMiddleware"]
        if django.VERSION >= (6, 0)
        else []
    ),
)
"""Middlewares that work wherever they stand in a stack."""

PASSING: dict[str, Shape] = {**MIXINS, **WRAPS}
ODD: dict[str, Shape] = {**ODD_HOOKS, **ODD_WRAPS, **SPECIALS}
SHAPES: dict[str, Shape] = {**PASSING, **ODD, **UNUSABLE}
_stand_ins: dict[str, str] = {}


def path_of(name: str, position: int) -> str:
    """Return the dotted path of a shape for a place in a stack; a dotted path is returned as it is.

    Raises:
        KeyError: if there is no shape of that name.
    """
    if "." in name:
        return name
    if name not in SHAPES:
        raise KeyError(f"{name}: no shape of that name; SHAPES has them")
    return f"{__name__}.{name}__{position}"


@contextlib.contextmanager
def standing_in(stand_ins: Mapping[str, str]) -> Iterator[None]:
    """Make other shapes than asked for, in their places and with their labels, by the beginning of their names."""
    _stand_ins.update(stand_ins)
    try:
        yield
    finally:
        _stand_ins.clear()


def __getattr__(label: str) -> Any:
    name = label.rpartition("__")[0]
    form, more, behaviour = name.partition("__")
    shape = SHAPES.get(f"{_stand_ins.get(form, form)}{more}{behaviour}")
    if shape is None:
        raise AttributeError(f"{label}: no shape of that name; SHAPES has them")
    return shape(label)
