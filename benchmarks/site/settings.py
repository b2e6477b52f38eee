"""Settings of the measured project: startproject's, with ``DEBUG`` off.

Three environment variables, which `benchmarks.databases` and those who start the processes fill in: ``BENCHMARKS_DATABASE`` is the
default database as a JSON object, ``BENCHMARKS_OURS`` set to 1 installs this package, and anything else leaves
it out, so that Django runs on asgiref alone.
"""

import json
import os

OURS = os.environ.get("BENCHMARKS_OURS") == "1"

# Of a project that holds nothing.
SECRET_KEY = "benchmarks-only-key-never-use-it-in-production"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    *(["django_asyncbridge"] if OURS else []),
]

# startproject's seven, in its order.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "benchmarks.site.urls"

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

ASGI_APPLICATION = "benchmarks.site.asgi.application"
WSGI_APPLICATION = "benchmarks.site.wsgi.application"

DATABASES = {
    "default": json.loads(
        os.environ.get(
            "BENCHMARKS_DATABASE", '{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}'
        )
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Errors are logged, as everywhere. No server writes a line for each request; `runasgi` asks this setting, the others
# their options.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "django": {"handlers": ["console"], "level": "ERROR"},
        "uvicorn": {"level": "WARNING"},
        "uvicorn.access": {"level": "WARNING"},
    },
}

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
