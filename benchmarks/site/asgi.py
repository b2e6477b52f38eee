"""The project under this package's handler."""

from django_asyncbridge.asgi import get_asgi_application

application = get_asgi_application()
