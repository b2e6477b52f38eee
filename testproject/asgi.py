"""ASGI entry of testproject: pages to Django's own handler, WebSockets to `testproject.ws`."""

import os
from typing import cast

from django.core.asgi import get_asgi_application

from django_asyncbridge.bridge.typing import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    Scope,
)
from testproject import ws

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")

# The type stubs describe Django's handler with plain dicts; it is an ASGI 3 application.
django_application = cast("ASGI3Application", get_asgi_application())


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Serve one scope. Django refuses lifespan with an error, which servers take as "not supported"."""
    if scope["type"] == "websocket":
        await ws.application(scope, receive, send)
    else:
        await django_application(scope, receive, send)
