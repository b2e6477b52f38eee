"""Settings of testproject: what ``startproject`` writes, plus the bridge and the guest book.

Three environment variables: ``DJANGO_DEBUG=0`` turns debugging off, ``DJANGO_SECRET_KEY`` replaces the
development key, ``TESTPROJECT_POSTGRES`` ("host=127.0.0.1 user=postgres dbname=testproject") takes PostgreSQL for
SQLite. Everything else is here.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "development-only-key-never-use-it-in-production")

DEBUG = os.environ.get("DJANGO_DEBUG", "1") == "1"

# Named, not left to DEBUG, so that the site also answers on this machine with debugging off.
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_asyncbridge",
    "testproject.guestbook",
]

# startproject's seven, in its order, below the one that gives each request its thread with any handler.
MIDDLEWARE = [
    "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "testproject.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

ASGI_APPLICATION = "testproject.asgi.application"
WSGI_APPLICATION = "testproject.wsgi.application"

ASYNCBRIDGE = {"WEBSOCKET_APPLICATION": "testproject.ws.application"}

# Several threads write at once under ASGI. With a write-ahead log readers do not wait for the writer;
# taking the write lock when a transaction begins lets a second writer wait for its turn (up to
# `timeout` seconds), where upgrading a read lock later would fail at once with "database is locked".
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
}

if conninfo := os.environ.get("TESTPROJECT_POSTGRES"):
    words = dict(word.split("=", 1) for word in conninfo.split())
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": words.pop("dbname", "testproject"),
            "OPTIONS": words,
        }
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

_VALIDATORS = "django.contrib.auth.password_validation"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"{_VALIDATORS}.UserAttributeSimilarityValidator"},
    {"NAME": f"{_VALIDATORS}.MinimumLengthValidator"},
    {"NAME": f"{_VALIDATORS}.CommonPasswordValidator"},
    {"NAME": f"{_VALIDATORS}.NumericPasswordValidator"},
]

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "entries"
LOGOUT_REDIRECT_URL = "index"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"

# How long the streaming pages wait between two lines.
STREAM_DELAY_SECONDS = 0.4
