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
    """
    # Before its parent "uvicorn", whose handlers it would otherwise be taken to have.
    _show("uvicorn.access", sys.stdout, AccessFormatter(_ACCESS))
    _show("uvicorn", sys.stderr, DefaultFormatter(_PLAIN))
    _show("django_asyncbridge", sys.stderr, DefaultFormatter(_PLAIN))


def _show(name: str, stream: TextIO, formatter: logging.Formatter) -> None:
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        logger.propagate = False
