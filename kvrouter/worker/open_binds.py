"""Whether a worker would take requests of whoever reaches it: allowed on loopback, or where somebody says so."""

from kvrouter.errors import SettingsError
from kvrouter.service.auth import is_loopback
from kvrouter.transport.http_settings import HttpPlaneSettings
from kvrouter.transport.plane_settings import PlaneSettings

__all__ = ["refuse_open_ways"]


def refuse_open_ways(
    host: str, transports: tuple[str, ...], planes: PlaneSettings, http: HttpPlaneSettings, *, insecure: bool
) -> None:
    """Refuse to listen beyond this machine for clients that prove nothing: no token, no certificate, no key.

    Over NATS nobody connects to the worker; who may publish there is its server's business.

    Raises:
        SettingsError: one of the transports would.
    """
    security = planes.security
    if insecure or is_loopback(host) or security.keys or security.jwt is not None:
        return
    proofs = {
        "nats": True,
        "tcp": planes.tcp.tls.client_ca_path,
        "http": http.tls.client_ca_path,
        "grpc": security.grpc_tls.client_ca_path,
        "zmq": security.curve is not None and security.curve.clients_path,
    }
    for transport in transports:
        if not proofs[transport]:
            raise SettingsError(
                f"refusing to bind {host} for {transport} without knowing clients: set KVROUTER_REQUEST_API_KEYS, "
                "ask for client certificates, or say --insecure"
            )
