"""Settings of the served project; ``E2E_DEBUG=1`` turns debugging on."""

import os

SECRET_KEY = "tests-only-key-never-use-it-in-production"
DEBUG = os.environ.get("E2E_DEBUG") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["django_asyncbridge"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "tests.serving.e2e.site"
ASGI_APPLICATION = "tests.serving.e2e.site.application"
ASYNCBRIDGE = {"WEBSOCKET_APPLICATION": "tests.serving.e2e.site.websocket_application"}
# Large uploads are what is tested.
DATA_UPLOAD_MAX_MEMORY_SIZE = None
USE_TZ = True
TIME_ZONE = "UTC"
