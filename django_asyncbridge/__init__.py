"""The sync/async bridge rebuilt for Django.

The everyday names of the bridge, importable before Django is configured and without it. The whole
library, under asgiref's module names, is ``django_asyncbridge.bridge``.
"""

from django_asyncbridge.bridge.local import Local
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    async_to_sync,
    cancelled,
    check_cancelled,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django_asyncbridge.safety import async_safe

__all__ = (
    "AsyncSingleThreadContext",
    "Local",
    "ThreadSensitiveContext",
    "__version__",
    "async_safe",
    "async_to_sync",
    "cancelled",
    "check_cancelled",
    "iscoroutinefunction",
    "markcoroutinefunction",
    "sync_to_async",
)

__version__ = "0.1.0"
