"""The guest book in Django's admin."""

from django.contrib import admin

from testproject.guestbook.models import Entry

admin.site.register(Entry)
