"""Tokens, keys, rates and files of the transports from the environment, and a worker and a client made of them."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq.auth

from kvrouter.errors import SettingsError, UnauthenticatedError
from kvrouter.store import open_key_value_store
from kvrouter.transport.access import ApiKey, Peer
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.plane_settings import plane_settings
from kvrouter.transport.security_settings import PlaneSecurity, TokenFile, security_settings
from kvrouter.transport.serve import serve
from kvrouter.transport.servers import ServerSettings
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.variables import variables_read
from tests.transport.authority import Authority
from tests.transport.conformance import run
from tests.transport.secured import PATIENT_SECONDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planes.md").read_text(encoding="utf-8")


def test_nothing_set_asks_nobody() -> None:
    """D-31: on loopback nothing is needed."""
    assert security_settings({}) == PlaneSecurity()
    assert PlaneSecurity().guard() is None


@pytest.mark.parametrize("prefix", ["DYN_", "KVROUTER_"])
def test_keys_and_rates_are_read(prefix: str) -> None:
    """A-140, A-141: names before keys; a key alone is told of by its place, also one that ends as base64 does."""
    told = {"REQUEST_API_KEYS": "blue=b=1, Zm9v== ,green=g", "REQUEST_RATE_LIMIT": "0.5", "REQUEST_RATE_BURST": "2"}
    security = security_settings({prefix + name: value for name, value in told.items()})

    assert security.keys == (
        ApiKey(name="blue", key="b=1"),
        ApiKey(name="key-2", key="Zm9v=="),
        ApiKey(name="green", key="g"),
    )
    assert (security.requests_per_second, security.burst) == (0.5, 2)
    guard = security.guard()
    assert guard is not None
    assert guard.identify(Peer("", "Bearer Zm9v==")).name == "key-2"
    assert "b=1" not in repr(security)


def test_signed_tokens_are_read(tmp_path: Path) -> None:
    """A-140: where their keys stand, and what they must say."""
    path = tmp_path / "key"
    path.write_bytes(bytes(range(33, 70)))
    names = {"KEY_PATH": str(path), "ISSUER": "us", "AUDIENCE": "workers", "SCOPE": "generate"}
    guard = security_settings({f"KVROUTER_REQUEST_JWT_{name}": value for name, value in names.items()}).guard()

    assert guard is not None
    with pytest.raises(UnauthenticatedError):
        guard.identify(Peer("", "Bearer x"))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"REQUEST_TOKEN": "a", "REQUEST_TOKEN_PATH": "/b"}, "REQUEST_TOKEN"),
        ({"REQUEST_TOKEN_PATH": "/nowhere/token"}, "/nowhere/token: No such file"),
        ({"REQUEST_API_KEYS": "a=1,a=2"}, "same name"),
        ({"REQUEST_API_KEYS": "a", "REQUEST_JWT_KEY_PATH": "/b"}, "exclude each other"),
        ({"REQUEST_JWT_KEY_PATH": "/a", "REQUEST_JWT_JWKS_PATH": "/b"}, "exclude each other"),
        ({"REQUEST_JWT_ISSUER": "us"}, "REQUEST_JWT_KEY_PATH"),
        ({"REQUEST_RATE_LIMIT": "many"}, "REQUEST_RATE_LIMIT='many' must be a number above 0"),
        ({"REQUEST_RATE_BURST": "5"}, "REQUEST_RATE_LIMIT"),
        ({"REQUEST_RATE_LIMIT": "1", "REQUEST_RATE_BURST": "0.5"}, "REQUEST_RATE_BURST"),
        ({"GRPC_TLS_KEY_PATH": "/a"}, "GRPC_TLS_CERT_PATH"),
        ({"NATS_TLS_CLIENT_KEY_PATH": "/a"}, "NATS_TLS_CLIENT_CERT_PATH"),
        ({"ZMQ_CURVE_SERVER_KEY_PATH": "/a"}, "ZMQ_CURVE_SECRET_KEY_PATH"),
    ],
)
def test_what_cannot_be_meant_is_named(environment: dict[str, str], said: str) -> None:
    """A-139, A-140, A-141: never a silent default."""
    with pytest.raises(SettingsError, match=said):
        security_settings({f"KVROUTER_{name}": value for name, value in environment.items()})


def test_credentials_of_nats_have_their_own_names() -> None:
    """B.11: in this order; without any nothing is shown."""
    assert security_settings({}).nats.credentials is None
    shown = security_settings({"NATS_AUTH_TOKEN": "t", "NATS_AUTH_CREDENTIALS_FILE": "/c"}).nats.credentials
    assert shown is not None
    assert shown.connect_options() == {"token": "t"}
    tls = security_settings({"KVROUTER_NATS_TLS_CA_CERT_PATH": "/ca"}).nats.tls
    assert tls is not None
    assert tls.ca_path == "/ca"


def test_curve_has_its_files(tmp_path: Path) -> None:
    """A-139: a pair of one's own, the server's public key, a folder of clients."""
    public, secret = zmq.auth.create_certificates(tmp_path, "own")
    curve = security_settings(
        {
            "KVROUTER_ZMQ_CURVE_SECRET_KEY_PATH": secret,
            "KVROUTER_ZMQ_CURVE_SERVER_KEY_PATH": public,
            "KVROUTER_ZMQ_CURVE_CLIENTS_PATH": str(tmp_path),
        }
    ).curve

    assert curve is not None
    assert (curve.secret_key_path, curve.server_key_path, curve.clients_path) == (secret, public, str(tmp_path))


def test_a_token_in_a_file_may_be_renewed(tmp_path: Path) -> None:
    """A-140: as Kubernetes does it; while it is away, the last one is shown."""
    path = tmp_path / "token"
    path.write_text("first\n")
    token = TokenFile(str(path))
    assert token() == "first"

    path.write_text("second")
    os.utime(path, (1, 1))
    assert token() == "second"
    path.unlink()
    assert token() == "second"
    path.write_text("")
    with pytest.raises(SettingsError, match="is empty"):
        TokenFile(str(path))


def test_a_worker_and_a_client_are_made_of_the_environment(tmp_path: Path) -> None:
    """A-139, A-140: the same variables at both ends; TLS, and a token inside."""
    authority = Authority(tmp_path)
    cert_path, key_path = authority.issue("worker")
    planes = plane_settings(
        {
            "KVROUTER_TCP_TLS_CERT_PATH": cert_path,
            "KVROUTER_TCP_TLS_KEY_PATH": key_path,
            "KVROUTER_TCP_TLS_CA_CERT_PATH": authority.path,
            "KVROUTER_TCP_TLS_HANDSHAKE_TIMEOUT_SECS": str(PATIENT_SECONDS),
            "KVROUTER_TCP_REQUEST_PORT": "0",
            "KVROUTER_REQUEST_API_KEYS": "router=secret",
            "KVROUTER_REQUEST_TOKEN": "secret",
        }
    )

    async def who(request: Request, context: Context) -> AsyncIterator[bytes]:
        yield context.identity.encode()

    async def scenario() -> None:
        settings = ServerSettings(tcp=planes.tcp, security=planes.security)
        store = open_key_value_store("memory://")
        async with serve("demo/backend", {"who": who}, store=store, settings=settings) as worker:
            address = worker.addresses["tcp"]
            known = TcpRequestClient(token=planes.security.token, tls=planes.tcp.tls, connect_seconds=PATIENT_SECONDS)
            unknown = TcpRequestClient(tls=planes.tcp.tls, connect_seconds=PATIENT_SECONDS)
            async with await known.request(address, Request(endpoint="who"), Context()) as stream:
                assert await stream.collect() == [b"router"]
            with pytest.raises(UnauthenticatedError):
                await unknown.request(address, Request(endpoint="who"), Context())
            await known.aclose()
            await unknown.aclose()

    run(scenario())


def test_every_variable_is_on_the_page() -> None:
    """A-247: what is read is told, and what is told is read."""
    section = PAGE.partition("\n## Security\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"`((?:REQUEST|GRPC_TLS|NATS_TLS|ZMQ_CURVE)_[A-Z_]+)`", section))
    read = {
        name.removeprefix("KVROUTER_") for name in variables_read(security_settings) if name.startswith("KVROUTER_")
    }
    files = {name for name in read if "_TLS_" in name}

    assert told == read - files
    for name in {name.partition("_TLS_")[2] for name in files}:
        assert f"| `{name}` |" in section
    for prefix in ("GRPC_TLS", "NATS_TLS"):
        assert {f"{prefix}_{name.partition('_TLS_')[2]}" for name in files} <= files


def test_the_program_of_the_page_works() -> None:
    """A-138, A-140: what it names is there."""
    section = PAGE.partition("\n## Security\n")[2].partition("\n## ")[0]
    (program,) = re.findall(r"```python\n([^`]+)```", section)
    names: dict[str, object] = {}

    exec(program, names)

    assert isinstance(names["client"], TcpRequestClient)
