"""django-asyncbridge as a Django app: what ``INSTALLED_APPS`` names."""

from django.apps import AppConfig

from django_asyncbridge import interop


class AsyncBridgeConfig(AppConfig):
    """Brings the management commands, and has asgiref share our registries (see `interop`). No models."""

    name = "django_asyncbridge"
    verbose_name = "Async bridge"

    def ready(self) -> None:
        """Make one bridge of asgiref's and ours, before any request."""
        interop.share_registries()
