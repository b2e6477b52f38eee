"""What a site is asked in: its settings, a time that stands still, and no chance.

Tokens, nonces, dates and cookies are the same whenever they are made, so that nothing in an answer has to be left out
of the comparison.

Which thread may touch what. For the thread of the test; what is patched is seen by all threads.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from django.core.cache import caches
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.test import override_settings
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter

from tests.handlers.differential.shapes import path_of
from tests.handlers.differential.trace import close_later, note

__all__ = ("BODY_LIMIT_BYTES", "KeptUploads", "Reporter", "site")

NOW = 1_700_000_000.0
BODY_LIMIT_BYTES = 400
HERE = "tests.handlers.differential"
PAGES = {
    "page.html": "page: {{ text }}",
    "broken.html": "broken: {{ fail }}",
    "seven.html": "seven: {% csrf_token %}{{ request.path }} {% for one in messages %}{{ one }}{% endfor %}",
}
PROCESSORS = ("template.context_processors.request", "contrib.messages.context_processors.messages")
SETTINGS: dict[str, Any] = {
    "DEBUG": False,
    "DEFAULT_EXCEPTION_REPORTER": f"{HERE}.sites.Reporter",
    "ROOT_URLCONF": f"{HERE}.urls",
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
    "SECRET_KEY": "of no use to anybody" * 3,
    "ALLOWED_HOSTS": ["localhost"],
    "DATA_UPLOAD_MAX_MEMORY_SIZE": BODY_LIMIT_BYTES,
    # Longer bodies go to a file.
    "FILE_UPLOAD_MAX_MEMORY_SIZE": 100,
    "FILE_UPLOAD_HANDLERS": [
        "django.core.files.uploadhandler.MemoryFileUploadHandler",
        f"{HERE}.sites.KeptUploads",
    ],
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    "LANGUAGES": [("en", "English"), ("de", "German")],
    # Django would configure logging anew with each of our handlers, and take away who listens.
    "LOGGING_CONFIG": None,
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [("django.template.loaders.locmem.Loader", PAGES)],
                "context_processors": [f"django.{one}" for one in PROCESSORS],
            },
        }
    ],
    # Of Django 6.0.
    "SECURE_CSP": {"default-src": ["'self'", "<CSP_NONCE_SENTINEL>"]},
}


class KeptUploads(TemporaryFileUploadHandler):
    """Sees to it that uploaded files are closed."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        close_later(self.file)


class Reporter(ExceptionReporter):
    """Reports an error by its name: frames and messages of a handler are its own business."""

    def get_traceback_text(self) -> SafeString:
        """Say what was raised."""
        name = type(self.exc_value).__name__
        note("reporter", name, "request" if self.request else "no request")
        return SafeString(name)

    get_traceback_html = get_traceback_text


@contextlib.contextmanager
def site(stack: Sequence[str], settings: Mapping[str, Any]) -> Iterator[None]:
    """Have a site with a stack of middleware.

    Args:
        stack: names of shapes or dotted paths, the outermost first.
        settings: that are not as in `SETTINGS`.
    """
    middleware = [path_of(name, position) for position, name in enumerate(stack)]
    with override_settings(**{**SETTINGS, "MIDDLEWARE": middleware, **settings}), no_chance():
        yield


@contextlib.contextmanager
def no_chance() -> Iterator[None]:
    """Stop the clock that tells dates, and let `secrets` have none."""
    fixed: dict[str, Callable[..., Any]] = {
        "choice": lambda letters: letters[7 % len(letters)],
        "randbelow": lambda limit: limit // 2,
        "token_urlsafe": lambda size=None: "n" * (size or 1),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(time, "time", return_value=NOW))
        for name, function in fixed.items():
            stack.enter_context(mock.patch.object(secrets, name, function))
        caches["default"].clear()
        yield
        caches["default"].clear()
