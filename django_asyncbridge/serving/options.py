"""How a server speaks HTTP: the options of `HTTPServer`, one frozen record, and the check of a certificate.

Nothing here opens a socket or imports uvicorn; any thread may call all of it.
"""

import ssl
from dataclasses import dataclass
from typing import Literal

from django_asyncbridge.serving.errors import CertificateError

__all__ = ("ServingOptions", "check_certificate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """What can be chosen about an `HTTPServer`; the defaults are uvicorn's but for `idle_grace_seconds`.

    Attributes:
        http: which parser: "h11" is pure Python, "httptools" is written in C; "auto" takes the latter where it is installed.
        ws: which implementation of WebSockets; "none" refuses them all.
        loop: which event loop `HTTPServer.run` makes: "auto" is uvloop where it is installed.
        lifespan: "on" fails if the application does not answer the lifespan scope, "auto" goes on without, "off" does not offer it.
        root_path: the path below which a proxy serves the project, as "/shop"; the scope's ``root_path``.
        proxy_headers: believe ``X-Forwarded-Proto`` and ``X-Forwarded-For`` of `forwarded_allow_ips`.
        forwarded_allow_ips: addresses and networks, separated by commas, or "*"; None for the environment variable
            ``FORWARDED_ALLOW_IPS``, or this machine.
        access_log: write a line for each request.
        keep_alive_seconds: how long a connection may be idle between two requests.
        graceful_seconds: how long requests in flight may take to finish when the server is to stop; None for any time.
        idle_grace_seconds: how long an idle connection may still send a request then, which it may be doing already.
        max_requests: stop after so many requests; None for never.
        certificate: path of a PEM file with the certificate and its chain; with it the server speaks TLS alone.
        certificate_key: path of a PEM file with its key; None if that is in `certificate`.
        certificate_password: of an encrypted key.
        watchdog_seconds: warn when the event loop was blocked for so long; None for never.
    """

    http: str = "auto"
    ws: str = "auto"
    loop: str = "auto"
    lifespan: Literal["auto", "on", "off"] = "auto"
    root_path: str = ""
    proxy_headers: bool = True
    forwarded_allow_ips: str | None = None
    access_log: bool = True
    keep_alive_seconds: int = 5
    graceful_seconds: int | None = None
    # Not measured: longer than a client that sends request after request takes to send the next.
    idle_grace_seconds: float = 0.5
    max_requests: int | None = None
    certificate: str | None = None
    certificate_key: str | None = None
    certificate_password: str | None = None
    watchdog_seconds: float | None = None

    @property
    def scheme(self) -> str:
        """What addresses of the server begin with: "http" or "https"."""
        return "http" if self.certificate is None else "https"


def check_certificate(options: ServingOptions) -> None:
    """Load the certificate and its key, so that what is wrong with them is known before a server starts.

    Raises:
        CertificateError: a file cannot be read, is no PEM file, or the key is another certificate's or encrypted with another password.
    """
    if options.certificate is None:
        if options.certificate_key is not None:
            raise CertificateError(
                f"The key {options.certificate_key!r} was given without a certificate; "
                "give that too, with --ssl-certfile."
            )
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Never None: OpenSSL would ask for it at the terminal.
        password = options.certificate_password or ""
        context.load_cert_chain(options.certificate, options.certificate_key, lambda: password)
    except OSError as error:
        raise CertificateError(_why_not(options, error)) from error


def _why_not(options: ServingOptions, error: OSError) -> str:
    files = " and ".join(
        repr(name) for name in (options.certificate, options.certificate_key) if name
    )
    if isinstance(error, FileNotFoundError):
        return f"The certificate cannot be read: of {files} one is not there."
    if not isinstance(error, ssl.SSLError):
        return f"The certificate {files} cannot be read: {error.strerror or error}."
    if "KEY_VALUES_MISMATCH" in str(error):
        return f"The certificate {files}: the key belongs to another certificate."
    if options.certificate_password is not None:
        return f"The certificate {files}: no PEM file, or the password of the key is another."
    return (
        f"The certificate {files}: no PEM file, or the key is encrypted; "
        "then give its password with --ssl-keyfile-password."
    )
