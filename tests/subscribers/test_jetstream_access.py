"""Whom a JetStream subscriber may read: credentials, certificates, and settings that cannot be meant."""

import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events.nats_names import NatsCredentials
from kvrouter_subscribers import JetStreamEventSubscriber
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import STREAM, following, working
from tests.subscribers.scene import WORKER, RecordingSink, run, until

CERTIFICATES = Path(__file__).parents[1] / "proxy" / "certificates"
TLS = f'tls {{ cert_file: "{CERTIFICATES}/certificate.pem", key_file: "{CERTIFICATES}/key.pem" }}'


@pytest.mark.parametrize(
    ("configuration", "userinfo", "options"),
    [
        ("user: kv, password: s3cret", "kv:s3cret@", {}),
        ("user: kv, password: s3cret", "", {"credentials": NatsCredentials(username="kv", password="s3cret")}),
        ("token: t0ken", "", {"credentials": NatsCredentials.from_environment({"NATS_AUTH_TOKEN": "t0ken"})}),
        ("user: user, password: user", "", {"credentials": NatsCredentials.from_environment({})}),
    ],
)
def test_a_server_that_wants_credentials_gets_them(
    tmp_path: Path, configuration: str, userinfo: str, options: dict[str, Any]
) -> None:
    """They are part of no status, error or position."""

    async def scenario(server: NatsServer) -> None:
        endpoint = f"nats://{userinfo}127.0.0.1:{server.port}/{STREAM}"
        async with following(**options) as scene:
            scene.listen(endpoint)
            with working(endpoint, **options) as worker:
                worker.work(3)
                await scene.heals(worker)
            shown = repr((scene.status(), scene.stream(), scene.subscriber.positions()))

        assert "s3cret" not in shown
        assert "t0ken" not in shown

    with nats_server(tmp_path, configuration=f"authorization {{ {configuration} }}") as server:
        run(scenario(server))


def test_a_server_that_refuses_us_is_told_and_tried_again(tmp_path: Path) -> None:
    """Not logged for ever, not given up: the operator may be about to add the user."""

    async def scenario(server: NatsServer) -> None:
        async with following() as scene:
            scene.listen(f"nats://kv:wrong-s3cret@127.0.0.1:{server.port}/{STREAM}")
            await until(lambda: scene.status().last_error)
            assert "uthorization" in str(scene.status().last_error)
            assert "s3cret" not in str(scene.status().last_error)

    with nats_server(tmp_path, configuration="authorization { user: kv, password: s3cret }") as server:
        run(scenario(server))


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        ("nats://host", {}),
        ("redis://host/0/stream", {}),
        ("nats://host/stream", {"replay_endpoint": "tcp://host:1"}),
        ("nats://host/stream", {"topic": "kv"}),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(endpoint: str, options: dict[str, str]) -> None:
    """At once, and not when the first event is missed."""
    subscriber = JetStreamEventSubscriber(RecordingSink())

    with pytest.raises(SettingsError):
        subscriber.add(WORKER, endpoint, **options)


@pytest.mark.parametrize("options", [{"mode": "everyone"}, {"name": "a.b"}, {"positions": {"nats://": 1}}])
def test_a_wrong_setting_is_refused(options: dict[str, Any]) -> None:
    """A name is a token of NATS subjects."""
    with pytest.raises(SettingsError):
        JetStreamEventSubscriber(RecordingSink(), **options)


def test_a_missing_client_library_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the package load without it."""
    monkeypatch.setitem(sys.modules, "nats", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'kvrouter\[nats\]'"):
        JetStreamEventSubscriber(RecordingSink())


def test_events_travel_encrypted_where_the_address_says_so(tmp_path: Path) -> None:
    """`tls://` on both sides, with a certificate that only these tests trust."""

    async def scenario(server: NatsServer) -> None:
        endpoint = f"tls://localhost:{server.port}/{STREAM}"
        trust = ssl.create_default_context(cafile=CERTIFICATES / "certificate.pem")
        async with following(tls=trust) as scene:
            scene.listen(endpoint)
            with working(endpoint, tls=trust) as worker:
                worker.work(5)
                await scene.heals(worker)

    with nats_server(tmp_path, configuration=TLS) as server:
        run(scenario(server))


def test_a_server_whose_certificate_is_not_trusted_is_not_read(tmp_path: Path) -> None:
    """Nobody else can play the server; why is told."""

    async def scenario(server: NatsServer) -> None:
        endpoint = f"tls://localhost:{server.port}/{STREAM}"
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                await until(lambda: "certificate" in str(scene.status().last_error).lower())
                await until(lambda: "certificate" in str(worker.publisher.last_error).lower())

        assert not scene.status().connected

    with nats_server(tmp_path, configuration=TLS) as server:
        run(scenario(server))
