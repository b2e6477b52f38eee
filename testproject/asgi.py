"""ASGI entry of testproject: pages, WebSockets and lifespan, as the settings say."""

import os

from django_asyncbridge.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")

application = get_asgi_application()
