"""django-asyncbridge as a Django app: what ``INSTALLED_APPS`` names."""

from django.apps import AppConfig

from django_asyncbridge import _atomic_guard, checks, conf, executors, interop, request_threads
from django_asyncbridge.handlers import atomic_requests
from django_asyncbridge.safety import name_async_safe

__all__ = ("AsyncBridgeConfig",)


class AsyncBridgeConfig(AppConfig):
    """Makes one bridge of asgiref's and ours, and gives it the project's settings. No models."""

    name = "django_asyncbridge"
    verbose_name = "Async bridge"

    def ready(self) -> None:
        """Apply the settings before any request, and whenever they change."""
        checks.register_checks()
        executors.register()
        atomic_requests.install()
        _atomic_guard.watch_orphans()
        _apply()
        conf.on_change(_apply)


def _apply() -> None:
    # Not `current`: `manage.py check` has to come to the point where it names what is wrong.
    usable = conf.usable()
    interop.install(usable.accelerate_django)
    request_threads.configure(usable)
    name_async_safe(usable.async_safe)
