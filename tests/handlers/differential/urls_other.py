"""Where middleware sends requests: each name is another view here, and some are gone."""

from django.urls import path

from tests.handlers.differential.views import VIEWS

urlpatterns = [
    path(f"{name}/", VIEWS["async_language" if name.startswith("sync") else "sync_language"])
    for name in VIEWS
    if not name.endswith("template")
]
