"""Django signals of the app: a server and its request threads begin and end.

All are sent robustly: a receiver that raises is logged, and breaks nothing. Connect to them in ``AppConfig.ready()``.

``server_started``, ``server_stopping``
    Sent by ``runasgi`` and ``runstateless`` in the thread of the event loop: once it takes connections (``runstateless``: before
    the server's ``handle`` begins), and once it is told to end, before what is in flight ends. Receivers may be coroutine
    functions. Arguments: ``address``, the `serving.address.Address` it listens on, or None for a socket without one, and from
    ``runstateless``.

``worker_leased``, ``worker_retired``
    Sent in a request thread: before the first call of a request that uses it, and when it is about to end. A receiver can
    set up and clean up what the project keeps per thread. Sync receivers. Arguments: ``thread``, the current
    `threading.Thread`.
"""

from django.dispatch import Signal

__all__ = ("server_started", "server_stopping", "worker_leased", "worker_retired")

server_started = Signal()
server_stopping = Signal()
worker_leased = Signal()
worker_retired = Signal()
