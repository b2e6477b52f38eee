"""The guest book as a Django app."""

from django.apps import AppConfig


class GuestbookConfig(AppConfig):
    """The guest book."""

    name = "testproject.guestbook"
    verbose_name = "Guest book"
