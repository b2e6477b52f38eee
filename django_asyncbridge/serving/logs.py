"""Log output of a server: visible without any configuration, and the project's own where it has one."""

import logging
import sys
from typing import TextIO

from uvicorn.logging import AccessFormatter, DefaultFormatter

__all__ = ("show_server_logs",)

_PLAIN = "%(levelprefix)s %(message)s"
_ACCESS = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'


def show_server_logs() -> None:
    """Make uvicorn's log and ours visible: one line per request on stdout, the rest on stderr.

    A logger for which the project's ``LOGGING`` has set handlers or a level keeps what it has. Nothing
    is reconfigured as a whole (`logging.config.dictConfig`), because that would close the handlers that
    Django has already set up. Calling it again changes nothing.

    To be called when the application has been loaded: `get_asgi_application` configures logging once
    more, and what that disabled is enabled here.
    """
    for name in _server_loggers():
        logging.getLogger(name).disabled = False
    # Before its parent "uvicorn", whose handlers it would otherwise be taken to have.
    _show("uvicorn.access", sys.stdout, AccessFormatter(_ACCESS))
    _show("uvicorn", sys.stderr, DefaultFormatter(_PLAIN))
    _show("django_asyncbridge", sys.stderr, DefaultFormatter(_PLAIN))


def _server_loggers() -> list[str]:
    """Return the names of uvicorn's loggers and ours, as far as they exist.

    ``LOGGING`` disables loggers that exist and that it does not name, unless it says otherwise
    (``disable_existing_loggers``). Ours do when Django configures logging for the second time.
    """
    return [
        name
        for name in list(logging.root.manager.loggerDict)
        if name.partition(".")[0] in ("uvicorn", "django_asyncbridge")
    ]


def _show(name: str, stream: TextIO, formatter: logging.Formatter) -> None:
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        logger.propagate = False
