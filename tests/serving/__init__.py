"""Tests of `django_asyncbridge.serving`, one file for each module; `children` starts the command."""
