"""`ServingCommand`: what the commands that serve have in common.

Which thread may touch what. A command runs in the main thread, from its start to its end.
"""

from datetime import datetime

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, connections

__all__ = ("ServingCommand",)


class ServingCommand(BaseCommand):
    """A command that runs until Ctrl-C or SIGTERM."""

    def warn_about_migrations(self) -> None:
        """Say which migrations are missing; a database that is down must not keep the site down."""
        try:
            self.check_migrations()
        except DatabaseError as error:
            text = f"The database does not answer, so its migrations were not checked: {error}"
            self.stderr.write(self.style.WARNING(text))
        finally:
            connections.close_all()

    def print_banner(self, what: str) -> None:
        """Say what is served, and how to stop it.

        Args:
            what: one line of the banner, as "Serving the project at ...".
        """
        self.stdout.write(
            f"{datetime.now().strftime('%B %d, %Y - %X')}\n"
            f"Django version {self.get_version()}, using settings {settings.SETTINGS_MODULE!r}\n"
            f"{what}\n"
            "Quit the server with CONTROL-C."
        )
        # Python holds lines back when the output is not a terminal.
        self.stdout.flush()
