"""What can go wrong before a server serves; each message is one line that a user can act on.

`FailureReportedError` alone is of another kind: see there.
"""

__all__ = (
    "AddressError",
    "ApplicationError",
    "CertificateError",
    "FailureReportedError",
    "ListenError",
    "OptionError",
    "ServerClassError",
    "ServerNotInstalledError",
    "ServingError",
    "StartupError",
    "in_one_line",
)


class ServingError(Exception):
    """A server could not start. Commands show its text as their one-line error."""


class AddressError(ServingError, ValueError):
    """The text is not an address to listen on."""


class ListenError(ServingError, OSError):
    """The address is well formed, but this machine does not let us listen there."""


class ApplicationError(ServingError, ImportError):
    """The application to serve cannot be imported, or is not one."""


class CertificateError(ServingError, ValueError):
    """The certificate for TLS, or its key, cannot be used."""


class ServerNotInstalledError(ServingError, ImportError):
    """uvicorn, which the extra ``server`` installs, is not there."""


class StartupError(ServingError, RuntimeError):
    """The application said in its lifespan that it cannot start."""


class ServerClassError(ServingError, TypeError):
    """The class to run cannot be imported, is no server, or cannot be made."""


class OptionError(ServingError, ValueError):
    """An option is unknown or missing, or its value is not what the constructor takes."""


class FailureReportedError(Exception):
    """Stands for an exception of the application that `HTTPServer` has reported: uvicorn answers it, and does not log it again."""


def in_one_line(error: Exception) -> str:
    """Return what an error is and says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
