"""django-asyncbridge as a Django app: what ``INSTALLED_APPS`` names."""

from django.apps import AppConfig


class AsyncBridgeConfig(AppConfig):
    """Brings the management commands. It has no models and changes nothing when it loads."""

    name = "django_asyncbridge"
    verbose_name = "Async bridge"
