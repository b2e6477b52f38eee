"""``manage.py runasgi``: serve the project over ASGI, in one process."""

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser

from django_asyncbridge.management.serving_command import ServingCommand
from django_asyncbridge.serving.address import Address, listen, parse_addrport
from django_asyncbridge.serving.application import Served, project_application
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.http import HTTPServer, require_uvicorn


class Command(ServingCommand):
    """Serves the project over ASGI until Ctrl-C or SIGTERM."""

    help = "Serves the project over ASGI (HTTP and WebSocket), in one process, with uvicorn."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address to listen on, in runserver's forms."""
        parser.add_argument(
            "addrport",
            nargs="?",
            help="Port, or address:port ([address]:port for IPv6); 127.0.0.1:8000 if not given.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Find out what to serve and where, say so, and serve; every failure is one line."""
        if not settings.DEBUG and not settings.ALLOWED_HOSTS:
            raise CommandError("You must set settings.ALLOWED_HOSTS if DEBUG is False.")
        try:
            require_uvicorn()
            address = parse_addrport(options["addrport"])
            served = project_application()
            self.warn_about_migrations()
            self.serve(served, address)
        except (ServingError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error

    def serve(self, served: Served, address: Address) -> None:
        """Listen, print the banner, and serve until told to stop."""
        from django_asyncbridge.serving.logs import show_server_logs  # noqa: PLC0415 - optional

        show_server_logs()
        listener = listen(address)
        server = HTTPServer(served.application, listener=listener)
        # Taken before the banner: whoever reads it may send a signal at once.
        with server.stop_on_signals():
            url = address.url(listener.getsockname()[1])
            self.print_banner(f"Serving {served.name} at {url}")
            server.run()
