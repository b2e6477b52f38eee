"""What can go wrong before a server serves; each message is one line that a user can act on."""

__all__ = (
    "AddressError",
    "ApplicationError",
    "ListenError",
    "ServerNotInstalledError",
    "ServingError",
    "StartupError",
)


class ServingError(Exception):
    """A server could not start. Commands show its text as their one-line error."""


class AddressError(ServingError, ValueError):
    """The text is not an address to listen on."""


class ListenError(ServingError, OSError):
    """The address is well formed, but this machine does not let us listen there."""


class ApplicationError(ServingError, ImportError):
    """The application to serve cannot be imported, or is not one."""


class ServerNotInstalledError(ServingError, ImportError):
    """uvicorn, which the extra ``server`` installs, is not there."""


class StartupError(ServingError, RuntimeError):
    """The application said in its lifespan that it cannot start."""
