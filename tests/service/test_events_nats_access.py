"""What a router shows to NATS servers for its workers' events: files of TLS and of credentials, from its settings."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nkeys
import pytest

from kvrouter.errors import SettingsError, StoreError
from kvrouter.events.nats_names import NatsCredentials
from kvrouter.service.event_transports import nats_access, nats_options
from kvrouter.settings import EventSettings
from kvrouter.store import open_key_value_store, open_object_store
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import STREAM, following, working
from tests.subscribers.scene import run, until
from tests.transport.authority import Authority

SIGNER = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the server and for us."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[NatsServer]:
    """A server that wants a certificate, and a name or a key."""
    cert, key = authority.issue("nats")
    configuration = (
        f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.path}", verify: true, timeout: 60 }}\n'
        f'authorization {{ users = [{{user: "kv", password: "s3cret"}}, {{nkey: "{SIGNER.public_key.decode()}"}}] }}'
    )
    with nats_server(tmp_path_factory.mktemp("nats"), configuration=configuration) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> EventSettings:
    """Settings with a file for everything but credentials."""
    cert, key = authority.issue("router")
    return EventSettings(nats_ca=Path(authority.path), nats_certificate=Path(cert), nats_key=Path(key))


@pytest.mark.parametrize("shown", ["url", "nkey"])
def test_events_come_over_tls_from_a_server_that_knows_us(
    shown: str, guarded: NatsServer, files: EventSettings, tmp_path: Path
) -> None:
    """A-139, A-140: certificates of both ends, and a password in the address or a key in a file."""
    address = "kv:s3cret@" if shown == "url" else ""
    if shown == "nkey":
        seed = tmp_path / "seed"
        seed.write_bytes(SIGNER.seed + b"\n")
        files = EventSettings(
            nats_ca=files.nats_ca, nats_certificate=files.nats_certificate, nats_key=files.nats_key, nats_nkey=seed
        )
    access = nats_access(files)
    endpoint = f"tls://{address}127.0.0.1:{guarded.port}/{STREAM}{shown}"

    async def scenario() -> None:
        async with following(**access) as scene:
            scene.listen(endpoint)
            with working(endpoint, **access) as worker:
                worker.work(5)
                await scene.heals(worker)

    run(scenario())


@pytest.mark.parametrize("scheme", ["nats", "tls"])
def test_stores_are_reached_with_the_same_files(
    scheme: str, guarded: NatsServer, files: EventSettings, tmp_path: Path
) -> None:
    """A-139: certificates of both ends and a key in a file; a user in the address goes first."""
    seed = tmp_path / "seed"
    seed.write_bytes(SIGNER.seed)
    options = nats_options(replace(files, nats_nkey=seed))

    async def scenario() -> None:
        for who in ("", "kv:s3cret@"):
            url = f"{scheme}://{who}127.0.0.1:{guarded.port}/kept"
            async with (
                open_key_value_store(url, nats_options=options) as keys,
                open_object_store(url, nats_options=options) as objects,
            ):
                await keys.bucket("b").put("k", b"v")
                await objects.put("b", "name", b"data")
                entry = await keys.bucket("b").get("k")
                assert entry is not None
                assert entry.value == b"v"
        async with open_key_value_store(f"tls://kv:s3cret@127.0.0.1:{guarded.port}/kept") as stranger:
            with pytest.raises(StoreError, match="certificate"):
                await stranger.bucket("b").get("k")

    run(scenario())


def test_a_server_that_does_not_know_us_is_told_of(guarded: NatsServer, files: EventSettings) -> None:
    """A-140: in the status of the source, and without what was shown."""

    async def scenario() -> None:
        async with following(**nats_access(files)) as scene:
            scene.listen(f"tls://kv:wrong-one@127.0.0.1:{guarded.port}/{STREAM}")
            await until(lambda: scene.status().last_error)
            assert "wrong-one" not in str(scene.status().last_error)
            assert not scene.status().connected

    run(scenario())


def test_files_become_what_connections_are_made_with(tmp_path: Path) -> None:
    """A-139: nothing where nothing is set."""
    credentials = tmp_path / "router.creds"
    credentials.write_text("-----BEGIN NATS USER JWT-----")

    assert nats_access(EventSettings()) == {}
    access = nats_access(EventSettings(nats_credentials=credentials))
    assert access == {"credentials": NatsCredentials(credentials_file=str(credentials))}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (EventSettings(nats_ca=Path("/nowhere/ca.pem")), "/nowhere/ca.pem: No such file"),
        (EventSettings(nats_credentials=Path("/nowhere/c.creds")), "/nowhere/c.creds: No such file"),
        (EventSettings(nats_nkey=Path("/nowhere/seed")), "/nowhere/seed: No such file"),
        (EventSettings(nats_certificate=Path("/x.pem")), "go together"),
        (EventSettings(nats_credentials=Path("/x"), nats_nkey=Path("/y")), "exclude each other"),
    ],
)
def test_what_cannot_be_meant_or_read_is_named(settings: EventSettings, said: str) -> None:
    """A-139: at the start of a router."""
    with pytest.raises(SettingsError, match=said):
        nats_access(settings)
