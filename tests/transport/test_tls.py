"""TLS of every transport, over real sockets: who is trusted, who is let in, what is read again, what is told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nkeys
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kvrouter.errors import SettingsError, TransportError, UnauthenticatedError, UnreachableError
from kvrouter.events.nats_names import NatsCredentials
from kvrouter.transport.access import AccessGuard, StaticKeys
from kvrouter.transport.grpc_tls import channel_credentials
from kvrouter.transport.http_settings import http_plane_settings
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.plane_settings import plane_settings
from kvrouter.transport.tls import ClientTls, PlaneTls, ServerTls
from tests.servers import NatsServer, nats_server
from tests.transport.authority import Authority, private_pem
from tests.transport.conformance import run
from tests.transport.secured import PATIENT_SECONDS, TLS_WAYS, Secured, Ways

SIGNER = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
NATS_USERS = f"""
authorization {{
  users = [{{user: "worker", password: "s3cret/@:"}}, {{nkey: "{SIGNER.public_key.decode()}"}}]
}}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for both ends."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_tls(authority: Authority) -> PlaneTls:
    """What servers have."""
    cert_path, key_path = authority.issue("worker.internal")
    return PlaneTls(cert_path=cert_path, key_path=key_path, handshake_seconds=PATIENT_SECONDS)


@pytest.fixture(scope="module")
def client_tls(authority: Authority) -> PlaneTls:
    """What clients have."""
    cert_path, key_path = authority.issue("client")
    return PlaneTls(
        ca_path=authority.path,
        client_cert_path=cert_path,
        client_key_path=key_path,
        handshake_seconds=PATIENT_SECONDS,
    )


# -- every transport that brings TLS itself --------------------------------------------------------------------------


@pytest.mark.parametrize("way", TLS_WAYS)
def test_requests_and_answers_are_encrypted(way: str, server_tls: PlaneTls, client_tls: PlaneTls) -> None:
    """A-138, A-139: with a token inside; a client without TLS gets nowhere."""
    guard = AccessGuard(authorise=StaticKeys({"us": "right"}))

    async def scenario() -> None:
        async with Secured.started(way, Ways(server_tls=server_tls, client_tls=client_tls), guard) as served:
            assert await served.ask(served.client("right")) == "us"
            if not way.startswith("http"):  # there the address says that it is TLS
                with pytest.raises(TransportError) as failure:
                    await served.ask(served.client("right", Ways(server_tls=server_tls)))
                assert failure.value.code == "UNAVAILABLE"

    run(scenario())


@pytest.mark.parametrize("way", TLS_WAYS)
def test_clients_show_a_certificate_where_they_must(
    way: str, authority: Authority, server_tls: PlaneTls, client_tls: PlaneTls
) -> None:
    """A-139: mutual TLS; who has none is not let in."""
    strict = replace(server_tls, client_ca_path=authority.path)
    anonymous = replace(client_tls, client_cert_path=None, client_key_path=None)

    async def scenario() -> None:
        async with Secured.started(way, Ways(server_tls=strict, client_tls=client_tls)) as served:
            assert await served.ask(served.client()) == "nobody"
            with pytest.raises(TransportError) as failure:
                await served.ask(served.client(ways=Ways(server_tls=strict, client_tls=anonymous)))
            assert failure.value.code == "UNAVAILABLE"

    run(scenario())


@pytest.mark.parametrize("way", TLS_WAYS)
def test_a_server_that_nobody_vouches_for_is_not_spoken_to(
    way: str, tmp_path: Path, server_tls: PlaneTls, client_tls: PlaneTls
) -> None:
    """A-139: its authority is another one."""
    elsewhere = PlaneTls(ca_path=Authority(tmp_path).path, handshake_seconds=PATIENT_SECONDS)

    async def scenario() -> None:
        async with Secured.started(way, Ways(server_tls=server_tls, client_tls=client_tls)) as served:
            with pytest.raises(UnreachableError):
                await served.ask(served.client(ways=Ways(server_tls=server_tls, client_tls=elsewhere)))
            assert served.seen == []

    run(scenario())


@pytest.mark.parametrize("way", TLS_WAYS)
def test_the_name_in_a_certificate_counts(way: str, server_tls: PlaneTls, client_tls: PlaneTls) -> None:
    """A-139, B.8: that of the address, or the one that is set instead."""

    async def scenario() -> None:
        async with Secured.started(way, Ways(server_tls=server_tls, client_tls=client_tls)) as served:
            named = Ways(server_tls=server_tls, client_tls=replace(client_tls, server_name="worker.internal"))
            assert await served.ask(served.client(ways=named)) == "nobody"
            misnamed = Ways(server_tls=server_tls, client_tls=replace(client_tls, server_name="other.internal"))
            with pytest.raises(UnreachableError):
                await served.ask(served.client(ways=misnamed))

    run(scenario())


@pytest.mark.parametrize("way", [way for way in TLS_WAYS if way != "grpc"])
def test_certificates_may_be_left_unverified(way: str, server_tls: PlaneTls) -> None:
    """A-139, B.8: INSECURE; encrypted all the same."""
    blind = PlaneTls(verify=False, handshake_seconds=PATIENT_SECONDS)

    async def scenario() -> None:
        async with Secured.started(way, Ways(server_tls=server_tls, client_tls=blind)) as served:
            assert await served.ask(served.client()) == "nobody"

    run(scenario())


@pytest.mark.parametrize("way", TLS_WAYS)
def test_renewed_certificates_need_no_restart(way: str, tmp_path: Path) -> None:
    """A-139: what is in the files at a handshake counts, for both ends: who they are and whom they trust."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    names = ("worker.pem", "worker.key", "client.pem", "client.key", "authority.pem")
    worker, worker_key, client, client_key, trusted = (str(tmp_path / name) for name in names)

    def install(authority: Authority) -> None:
        made = (*authority.issue("worker"), *authority.issue("client"), authority.path)
        for source, path in zip(made, (worker, worker_key, client, client_key, trusted), strict=True):
            Path(path).write_bytes(Path(source).read_bytes())

    async def scenario() -> None:
        install(old)
        tls = PlaneTls(
            cert_path=worker, key_path=worker_key, ca_path=trusted, client_ca_path=trusted,
            client_cert_path=client, client_key_path=client_key, handshake_seconds=PATIENT_SECONDS,
        )  # fmt: skip
        async with Secured.started(way, Ways(server_tls=tls, client_tls=tls)) as served:
            assert await served.ask(served.client()) == "nobody"
            install(new)
            assert await served.ask(served.client()) == "nobody"

    run(scenario())


# -- the files -------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, server_tls: PlaneTls, authority: Authority) -> None:
    """A-139: at the start, in one line, and never a connection that fails later."""
    missing, rubbish = str(tmp_path / "missing.pem"), tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    _, other_key = authority.issue("other")
    for wrong, said in (
        (replace(server_tls, cert_path=missing), "missing.pem: No such file"),
        (replace(server_tls, key_path=missing), "missing.pem: No such file"),
        (replace(server_tls, cert_path=str(rubbish)), "rubbish.pem"),
        (replace(server_tls, key_path=other_key), "other.key: not a PEM certificate chain with its private key"),
        (replace(server_tls, client_ca_path=str(rubbish)), "rubbish.pem: no certificates"),
    ):
        with pytest.raises(SettingsError, match=said):
            ServerTls(wrong)
    for ca_path, said in ((missing, "missing.pem: No such file"), (str(rubbish), "rubbish.pem: no certificates")):
        with pytest.raises(SettingsError, match=said):
            ClientTls(PlaneTls(ca_path=ca_path))
    with pytest.raises(SettingsError, match=r"missing\.pem: No such file"):
        channel_credentials(PlaneTls(ca_path=missing))
    with pytest.raises(SettingsError, match="gRPC verifies"):
        channel_credentials(PlaneTls(verify=False))


def test_files_that_break_later_leave_what_was_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A-139: a certificate that is half written does not end a service; why it is not used is told."""
    authority = Authority(tmp_path)
    cert_path, key_path = authority.issue("worker")
    server = ServerTls(PlaneTls(cert_path=cert_path, key_path=key_path))
    first = server.current()
    assert server.current() is first

    Path(cert_path).write_text("half a certifi")
    assert server.current() is first
    assert (server.failed_reloads, server.current()) == (1, first)
    assert "worker.pem" in str(server.last_error)
    assert [record.message for record in caplog.records] == ["changed_file_unreadable"]

    authority.issue("worker")
    assert server.current() is not first
    assert (server.failed_reloads, server.last_error) == (1, None)


def test_an_encrypted_key_is_an_error_and_no_question(tmp_path: Path) -> None:
    """A-139: a service has nobody at a terminal."""
    cert_path, _ = Authority(tmp_path).issue("worker")
    key = tmp_path / "encrypted.key"
    key.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), password=b"password"))

    with pytest.raises(SettingsError, match=r"encrypted\.key"):
        ServerTls(PlaneTls(cert_path=cert_path, key_path=str(key)))


@pytest.mark.parametrize("prefix", ["DYN_", "KVROUTER_"])
@pytest.mark.parametrize("plane", ["TCP", "HTTP"])
def test_the_names_of_the_environment_are_those_of_dynamo(prefix: str, plane: str) -> None:
    """A-139, B.8: the same set for both planes."""
    values = {
        "CERT_PATH": "/cert", "KEY_PATH": "/key", "CLIENT_CA_CERT_PATH": "/clients", "CLIENT_CERT_PATH": "/shown",
        "CLIENT_KEY_PATH": "/shown-key", "SERVER_NAME": "worker", "INSECURE": "true", "HANDSHAKE_TIMEOUT_SECS": "1.5",
    }  # fmt: skip
    environment = {f"{prefix}{plane}_TLS_{name}": value for name, value in values.items()}
    tls = plane_settings(environment).tcp.tls if plane == "TCP" else http_plane_settings(environment).tls

    assert tls == PlaneTls(
        cert_path="/cert", key_path="/key", client_ca_path="/clients", client_cert_path="/shown",
        client_key_path="/shown-key", server_name="worker", verify=False, handshake_seconds=1.5,
    )  # fmt: skip
    assert (tls.serves, tls.dials) == (True, True)
    assert (PlaneTls().serves, PlaneTls().dials, PlaneTls().handshake_seconds) == (False, False, 3.0)


@pytest.mark.parametrize(
    "names",
    [
        ("CERT_PATH",),
        ("KEY_PATH",),
        ("CLIENT_CERT_PATH",),
        ("CLIENT_KEY_PATH",),
        ("CLIENT_CA_CERT_PATH",),
        ("INSECURE", "CA_CERT_PATH"),
        ("HANDSHAKE_TIMEOUT_SECS",),
    ],
)
def test_half_of_it_is_an_error(names: tuple[str, ...]) -> None:
    """A-139, B.8: half-configured means that it does not start."""
    with pytest.raises(SettingsError, match="TCP_TLS"):
        plane_settings({f"KVROUTER_TCP_TLS_{name}": "yes" for name in names})


# -- NATS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_nats(
    tmp_path_factory: pytest.TempPathFactory, server_tls: PlaneTls, authority: Authority
) -> Iterator[NatsServer]:
    """A nats-server that wants certificates of both ends, and a name."""
    tls = f'tls {{ cert_file: "{server_tls.cert_path}", key_file: "{server_tls.key_path}", '
    tls += f'ca_file: "{authority.path}", verify: true, timeout: {PATIENT_SECONDS} }}\n'
    with nats_server(tmp_path_factory.mktemp("nats"), configuration=tls + NATS_USERS) as server:
        yield server


@pytest.mark.parametrize("way", ["nats", "call-home over nats"])
@pytest.mark.parametrize("shown", ["password", "nkey", "url"])
def test_both_ends_prove_themselves_to_a_nats_server(
    way: str, shown: str, guarded_nats: NatsServer, client_tls: PlaneTls
) -> None:
    """A-139, B.11: certificates, and a password or a key, in the server's URL or beside it."""
    credentials = {
        "password": NatsCredentials(username="worker", password="s3cret/@:"),
        "nkey": NatsCredentials(nkey_seed=SIGNER.seed.decode()),
        "url": None,
    }[shown]
    url = f"tls://127.0.0.1:{guarded_nats.port}"
    if shown == "url":
        url = f"tls://worker:s3cret%2F%40%3A@127.0.0.1:{guarded_nats.port}"
    ways = Ways(nats=url, access=NatsAccess(credentials=credentials, tls=client_tls, connect_seconds=PATIENT_SECONDS))

    async def scenario() -> None:
        async with Secured.started(way, ways) as served:
            assert await served.ask(served.client()) == "nobody"

    run(scenario())


@pytest.mark.parametrize("way", ["nats", "call-home over nats"])
def test_a_nats_server_that_does_not_know_us_says_so(way: str, guarded_nats: NatsServer, client_tls: PlaneTls) -> None:
    """A-140: with an error of its own, that does not repeat what was shown."""
    url = f"tls://worker:wrong-password@127.0.0.1:{guarded_nats.port}"
    ways = Ways(nats=url, access=NatsAccess(tls=client_tls, connect_seconds=PATIENT_SECONDS))

    async def scenario() -> None:
        with pytest.raises(UnauthenticatedError) as refusal:
            async with Secured.started(way, ways):
                raise AssertionError("it has started")
        assert "wrong-password" not in str(refusal.value)

    run(scenario())


def test_a_nats_server_that_nobody_vouches_for_is_not_spoken_to(guarded_nats: NatsServer, tmp_path: Path) -> None:
    """A-139: before anything is shown to it."""
    url = f"tls://worker:s3cret@127.0.0.1:{guarded_nats.port}"
    ways = Ways(nats=url, access=NatsAccess(tls=PlaneTls(ca_path=Authority(tmp_path).path)))

    async def scenario() -> None:
        with pytest.raises(UnreachableError, match=r"(?i)certificate") as failure:
            async with Secured.started("nats", ways):
                raise AssertionError("it has started")
        assert "s3cret" not in str(failure.value)

    run(scenario())
