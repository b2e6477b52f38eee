"""Serving an ASGI application: where to listen, what to serve, and the servers themselves.

``address`` and ``application`` decide, ``http`` serves, ``logs`` shows; ``management`` puts them together.
"""
