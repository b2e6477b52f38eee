"""A request's way through Django: ``asgi`` is the handler, ``busy`` what it answers when no thread is free."""
