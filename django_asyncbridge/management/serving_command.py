"""`ServingCommand`: what the commands that serve have in common.

A command may be three processes: the only one; the parent, which starts the same command line again and serves nothing; or a worker of
that. `ServingCommand.execute` finds out which.

Which thread may touch what. A command runs in the main thread, from its start to its end.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connections

from django_asyncbridge.serving._changes import Changes, directories_to_watch
from django_asyncbridge.serving._worker_link import WorkerLink
from django_asyncbridge.serving.errors import OptionError, ServingError

__all__ = ("ServingCommand",)


class ServingCommand(BaseCommand):
    """A command that runs until Ctrl-C or SIGTERM.

    Attributes:
        link: the line to the parent, in a worker; else None.
        reloads: whether code that changes is loaded again; in the parent and in the worker.
        looks_first: whether this process is the one that runs the system checks and looks at migrations.
    """

    link: WorkerLink | None = None
    reloads = False
    looks_first = True

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Find out which process this is, and have the system checks run in one of them.

        A worker of a parent that reloads checks what has changed; otherwise the first process checks, once for all.
        """
        try:
            self.link = WorkerLink.from_environ(os.environ)
        except ServingError as error:
            raise CommandError(str(error)) from error
        self.reloads = self.wants_reload(options)
        self.looks_first = (self.link is not None) == self.reloads
        options["skip_checks"] = options["skip_checks"] or not self.looks_first
        result: str | None = super().execute(*args, **options)
        return result

    def wants_reload(self, options: dict[str, Any]) -> bool:
        """Tell whether code that changes is to be loaded again."""
        return bool(options["reload"])

    def is_on_command_line(self) -> bool:
        """Tell whether a person has started this, and not ``call_command``."""
        return getattr(self, "_called_from_command_line", False)

    def require_command_line(self) -> None:
        """Say that there is nothing to start again, if ``call_command`` was called.

        Raises:
            OptionError: it was.
        """
        if not self.is_on_command_line():
            raise OptionError(
                "--workers and --reload start the command line again; "
                "give them to manage.py, not to call_command()."
            )

    def changes_of_project(self) -> Changes:
        """Return what looks for changed files of the project and of its apps."""
        paths = [config.path for config in apps.get_app_configs()]
        return Changes(directories_to_watch(paths, Path.cwd()))

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
