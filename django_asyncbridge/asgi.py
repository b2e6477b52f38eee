"""What a project's ``asgi.py`` imports instead of ``django.core.asgi``."""

import django

from django_asyncbridge.conf import require_app
from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.handlers.mounts import Mounts

__all__ = ("Mounts", "get_asgi_application")


def get_asgi_application() -> ASGIHandler:
    """Set Django up, and return the project as an ASGI application.

    Use it as Django's function of the same name::

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
        application = get_asgi_application()

    Raises:
        django.core.exceptions.ImproperlyConfigured: when the app is not installed; or naming everything that is wrong with
            the setting ``ASYNCBRIDGE``.
    """
    django.setup(set_prefix=False)
    require_app("get_asgi_application()")
    return ASGIHandler()
