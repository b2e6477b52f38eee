"""The addresses of the guest book."""

from django.urls import path

from testproject.guestbook import streaming, views

urlpatterns = [
    path("", views.index, name="index"),
    path("entries/", views.entries, name="entries"),
    path("async/entries/", views.async_entries, name="async-entries"),
    path("stream/", streaming.stream, name="stream"),
    path("async/stream/", streaming.async_stream, name="async-stream"),
    path("echo/", views.echo, name="echo"),
    path("sign-up/", views.sign_up, name="sign-up"),
]
