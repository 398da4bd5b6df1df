"""TLS of gRPC from the same files as that of the other transports; gRPC has no use for Python's contexts."""

from typing import Any

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.transport.tls import PlaneTls, read_pem

try:
    import grpc
except ImportError as error:
    raise MissingExtraError("the request plane over gRPC", "grpc") from error

__all__ = ["channel_credentials", "channel_name_options", "server_credentials"]


def server_credentials(tls: PlaneTls) -> Any:
    """What a server listens with; files that changed are read at the next handshake. Raises SettingsError."""
    read = [_server_files(tls)]

    def current() -> Any:
        try:
            files = _server_files(tls)
        except SettingsError:
            return None  # what was read before goes on
        if files == read[0]:
            return None
        read[0] = files
        return _configuration(*files)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(*read[0]), current, require_client_authentication=tls.client_ca_path is not None
    )


def channel_credentials(tls: PlaneTls) -> Any:
    """What a client dials with.

    Raises:
        SettingsError: a file cannot be read, or certificates are not to be verified, which gRPC always does.
    """
    if not tls.verify:
        raise SettingsError("TLS: gRPC verifies certificates whatever is set; name the authority in CA_CERT_PATH")
    return grpc.ssl_channel_credentials(
        None if tls.ca_path is None else read_pem(tls.ca_path),
        None if tls.client_key_path is None else read_pem(tls.client_key_path),
        None if tls.client_cert_path is None else read_pem(tls.client_cert_path),
    )


def channel_name_options(tls: PlaneTls) -> list[tuple[str, str]]:
    """What a channel must be told of the server's name, where that is not its address."""
    return [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]


def _server_files(tls: PlaneTls) -> tuple[bytes, bytes, bytes | None]:
    assert tls.cert_path is not None, "no certificate"
    key = read_pem(tls.key_path or tls.cert_path)
    return key, read_pem(tls.cert_path), None if tls.client_ca_path is None else read_pem(tls.client_ca_path)


def _configuration(key: bytes, chain: bytes, client_authorities: bytes | None) -> Any:
    return grpc.ssl_server_certificate_configuration([(key, chain)], client_authorities)
