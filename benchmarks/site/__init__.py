"""The Django project that `benchmarks.handler` and `benchmarks.serve` measure: what ``startproject`` makes, and small views.

`asgi` is the project under this package's handler, `stock_asgi` and `wsgi` under Django's own. `settings` takes from the
environment what differs between the processes of one run.
"""

__all__ = ()
