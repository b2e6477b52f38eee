"""Tests of `django_asyncbridge.handlers`."""
