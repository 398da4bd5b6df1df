"""Settings of the HTTP planes from the environment."""

import pytest

from kvrouter.errors import SettingsError
from kvrouter.transport.http_settings import HttpPlaneSettings, http_plane_settings
from kvrouter.transport.tls import PlaneTls


def test_the_defaults_are_those_of_the_protocol() -> None:
    """A-103, A-104, A-105, A-106, A-209, A-242, A-244, D-2: nothing set."""
    settings = http_plane_settings({})

    assert settings == HttpPlaneSettings()
    assert (settings.rpc_host, settings.rpc_port, settings.rpc_root) == ("0.0.0.0", 8081, "/v1/rpc")
    assert settings.acknowledge_seconds == 5
    assert (settings.response_host, settings.response_port) == ("0.0.0.0", 8082)
    assert settings.response_root == "/v1/rpc/response"
    assert (settings.answer_format, settings.stream_seconds) == ("sse", 3600)


@pytest.mark.parametrize("prefix", ["DYN_", "KVROUTER_"])
@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("HTTP_RPC_HOST", "10.0.0.1", "rpc_host", "10.0.0.1"),
        ("HTTP_RPC_PORT", "9000", "rpc_port", 9000),
        ("HTTP_RPC_ROOT_PATH", "/v1/dynamo/", "rpc_root", "/v1/dynamo"),
        ("HTTP_REQUEST_TIMEOUT", "2.5", "acknowledge_seconds", 2.5),
        ("HTTP_RESPONSE_HOST", "::1", "response_host", "::1"),
        ("HTTP_RESPONSE_PORT", "0", "response_port", 0),
        ("HTTP_RESPONSE_ROOT_PATH", "/answers", "response_root", "/answers"),
        ("HTTP_RESPONSE_STREAM_FORMAT", "ndjson", "answer_format", "ndjson"),
        ("HTTP_RESPONSE_STREAM_FORMAT", "BINARY", "answer_format", "binary"),
        ("HTTP_RESPONSE_TIMEOUT_SECS", "60", "stream_seconds", 60.0),
        ("HTTP_RPC_PORT", "  ", "rpc_port", 8081),
    ],
)
def test_variables_are_read(prefix: str, name: str, value: str, field: str, read: object) -> None:
    """A-103, A-104, A-105, A-106, A-112, A-209, A-242, A-244, D-3: under both prefixes."""
    assert getattr(http_plane_settings({prefix + name: value}), field) == read


def test_our_own_prefix_wins() -> None:
    """D-3: the other one is accepted with lower precedence."""
    assert http_plane_settings({"DYN_HTTP_RPC_PORT": "1", "KVROUTER_HTTP_RPC_PORT": "2"}).rpc_port == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DYN_HTTP_RPC_PORT", "tcp://10.0.0.1:80"),
        ("DYN_HTTP_RPC_PORT", "65536"),
        ("DYN_HTTP_RPC_ROOT_PATH", "rpc"),
        ("DYN_HTTP_RPC_ROOT_PATH", "//"),
        ("DYN_HTTP_REQUEST_TIMEOUT", "soon"),
        ("DYN_HTTP_REQUEST_TIMEOUT", "0"),
        ("DYN_HTTP_REQUEST_TIMEOUT", "inf"),
        ("DYN_HTTP_RESPONSE_STREAM_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """Never a silent default."""
    with pytest.raises(SettingsError, match=name):
        http_plane_settings({name: value})


def test_files_of_tls_are_read() -> None:
    """A-139: a certificate for the server, authorities for both sides, a certificate for the client."""
    names = ("CERT_PATH", "KEY_PATH", "CA_CERT_PATH", "CLIENT_CA_CERT_PATH", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH")
    tls = http_plane_settings({f"KVROUTER_HTTP_TLS_{name}": f"/{number}" for number, name in enumerate(names)}).tls

    assert tls == PlaneTls(
        cert_path="/0", key_path="/1", ca_path="/2", client_ca_path="/3", client_cert_path="/4", client_key_path="/5"
    )
    assert tls.serves
    assert not PlaneTls().serves


@pytest.mark.parametrize(
    "name", ["CERT_PATH", "KEY_PATH", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH", "CLIENT_CA_CERT_PATH"]
)
def test_half_of_tls_is_an_error(name: str) -> None:
    """B.8: half-configured means that it does not start."""
    with pytest.raises(SettingsError, match="TLS"):
        http_plane_settings({f"DYN_HTTP_TLS_{name}": "/x"})
