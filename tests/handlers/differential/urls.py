"""The site: each view under its name."""

from django.urls import path

from tests.handlers.differential.views import VIEWS

urlpatterns = [
    *(path(f"{name}/", view, name=name) for name, view in VIEWS.items()),
    path("with/<int:number>/<str:word>/", VIEWS["sync_ok"], {"extra": "of the pattern"}),
]
