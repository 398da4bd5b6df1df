"""Where NATS is, how it is trusted, and who we are there: settings become what the client library takes."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kvrouter.errors import SettingsError
from kvrouter.events.nats_names import NatsCredentials
from kvrouter.settings_gateway import GatewaySettings

__all__ = ["nats_credentials", "nats_servers", "nats_tls", "without_secrets"]

_AUTH = "NATS_AUTH_"


def nats_servers(text: str) -> list[str]:
    """Return the servers of `gateway.nats_url`.

    Raises:
        SettingsError: one is no `nats://host:port` or `tls://host:port`.
    """
    servers = [part.strip() for part in text.split(",") if part.strip()]
    for server in servers or [""]:
        try:
            parts = urlsplit(server)
            good = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise SettingsError(
                f"gateway.nats_url: {without_secrets(server)!r} must look like nats://host:4222 or tls://host:4222"
            )
    return servers


def without_secrets(text: str) -> str:
    """The addresses without what stands before an @."""
    return ",".join(
        f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme
        for scheme, _, rest in (part.strip().partition("://") for part in text.split(","))
    )


def nats_tls(ours: GatewaySettings) -> ssl.SSLContext | None:
    """Return how servers are trusted, and our certificate; None: as the addresses say.

    Raises:
        SettingsError: a file cannot be read, or is none of its kind.
    """
    if ours.nats_tls_ca is None and ours.nats_tls_certificate is None and ours.nats_tls_key is None:
        return None
    if (ours.nats_tls_certificate is None) != (ours.nats_tls_key is None):
        raise SettingsError("gateway.nats_tls_certificate and gateway.nats_tls_key go together")
    try:
        context = ssl.create_default_context(cafile=ours.nats_tls_ca)
        if ours.nats_tls_certificate is not None:
            context.load_cert_chain(ours.nats_tls_certificate, ours.nats_tls_key)
    except (OSError, ssl.SSLError) as error:
        files = [ours.nats_tls_ca, ours.nats_tls_certificate, ours.nats_tls_key]
        named = ", ".join(str(file) for file in files if file is not None)
        raise SettingsError(f"gateway.nats_tls_...: cannot use {named}: {error.strerror or error}") from None
    return context


def nats_credentials(ours: GatewaySettings, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return who we are: the credentials file, or what `NATS_AUTH_...` say; nothing where neither is set.

    Raises:
        SettingsError: the credentials file cannot be read.
    """
    if ours.nats_credentials is not None:
        try:
            ours.nats_credentials.read_bytes()
        except OSError as error:
            raise SettingsError(f"gateway.nats_credentials: {ours.nats_credentials}: {error.strerror}") from None
        return {"user_credentials": str(ours.nats_credentials)}
    if not any(environment.get(name) for name in environment if name.startswith(_AUTH)):
        return {}
    return NatsCredentials.from_environment(environment).connect_options()
