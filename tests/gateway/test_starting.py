"""How a gateway starts, and what it says where it cannot (A-418, A-422, A-433, A-438); how it stops."""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from kvrouter.errors import SettingsError
from kvrouter.gateway import nats_link
from kvrouter.gateway.command import gateway_settings
from kvrouter.gateway.composition import Place
from kvrouter.gateway.nats_settings import nats_credentials, nats_servers, nats_tls, without_secrets
from kvrouter.gateway.process import run_gateway
from kvrouter.settings import Settings
from kvrouter.settings_gateway import GatewaySettings
from kvrouter.settings_sources import add_settings_flags
from tests.gateway.scene import INFER, GatewayProcess, ScriptedProcess, events_of, gateway, infer
from tests.servers import NatsServer, free_port, nats_server
from tests.service.processes import eventually

CERTIFICATES = Path(__file__).parents[1] / "proxy" / "certificates"


def settings(*flags: str, **environment: str) -> GatewaySettings:
    """Load as the command line would."""
    parser = argparse.ArgumentParser()
    add_settings_flags(parser, "gateway")
    return gateway_settings(parser.parse_args(flags), environment).gateway


def refused(*options: str, **environment: str) -> str:
    """The one line that a gateway ends with which cannot start, behind its exit code."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVROUTER_")}
    ended = subprocess.run(
        [sys.executable, "-m", "kvrouter", "gateway", "--port", "0", *options],
        capture_output=True, text=True, timeout=120, check=False, env={**inherited, **environment},
    )  # fmt: skip
    (line,) = ended.stderr.strip().splitlines()
    return f"{ended.returncode} {line}"


def test_the_variables_of_the_seed_are_taken() -> None:
    """A-422, D-23: plain names count where ours are not set; NATS_URL goes before NATS_SERVER."""
    found = settings(
        PORT="9000", HOST="0.0.0.0", NATS_SERVER="nats://b", NATS_URL="nats://a", NATS_TIMEOUT_SECONDS="5",
        NATS_TLS_CA="ca.pem", NATS_TLS_CERT="cert.pem", NATS_TLS_KEY="key.pem",
    )  # fmt: skip

    assert (found.port, found.host, found.nats_url, found.timeout_seconds) == (9000, "0.0.0.0", "nats://a", 5.0)
    assert (found.nats_tls_ca, found.nats_tls_certificate, found.nats_tls_key) == tuple(
        Path(name) for name in ("ca.pem", "cert.pem", "key.pem")
    )
    assert settings(NATS_SERVER="nats://b").nats_url == "nats://b"
    assert settings("--port", "1", PORT="2", KVROUTER_GATEWAY__PORT="3").port == 1
    assert settings(PORT="2", KVROUTER_GATEWAY__PORT="3").port == 3


def test_defaults_are_those_of_the_seed_but_for_the_address() -> None:
    """A-422: 8000, nats://localhost:4222, 30 s; beyond loopback only on purpose."""
    found = settings()

    assert (found.port, found.nats_url, found.timeout_seconds) == (8000, "nats://localhost:4222", 30.0)
    assert (found.host, found.body_bytes_max, found.streams_max) == ("127.0.0.1", 10 << 20, 100)


def test_a_wrong_variable_is_named_as_it_was_set() -> None:
    """Whoever set PORT does not look for KVROUTER_GATEWAY__PORT."""
    with pytest.raises(SettingsError, match=r"^PORT: 'many' is not a whole number"):
        settings(PORT="many")


@pytest.mark.parametrize(
    ("options", "environment", "code", "named"),
    [
        (["--nats-url", "http://x:4222"], {}, 2, "must look like nats://host:4222"),
        ([], {"HOST": "0.0.0.0"}, 2, "refusing to bind 0.0.0.0 without API keys"),
        (["--descriptors", "absent.binpb"], {}, 2, "descriptor set absent.binpb: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(options: list[str], environment: dict[str, str], code: int, named: str) -> None:
    """A-433: before anything listens."""
    line = refused(*options, **environment)

    assert line.startswith(f"{code} kvrouter: ")
    assert named in line


@pytest.mark.parametrize(
    ("ours", "named"),
    [
        (GatewaySettings(routes=Path("absent.toml")), "route table absent.toml: cannot be read"),
        (GatewaySettings(store="nowhere://x"), "store 'nowhere://x' must look like"),
        (GatewaySettings(tls_key=Path("absent.pem")), "gateway.tls_key needs gateway.tls_certificate"),
        (GatewaySettings(tls_certificate=Path("absent.pem")), "there is no file absent.pem"),
        (GatewaySettings(tls_certificate=Path(__file__), tls_key=Path(__file__)), "cannot use"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(ours: GatewaySettings, named: str) -> None:
    """A-433: files and addresses, before NATS is looked for."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(SettingsError, match=re.escape(named)):
        asyncio.run(run_gateway(Settings(gateway=ours), listener, credentials={}, place=Place()))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_broker_that_is_not_there_is_one_line(processes: str) -> None:
    """A-433: with the address, without the password, and the reason."""
    url = f"nats://ann:secret@127.0.0.1:{free_port()}"

    line = refused("--nats-url", url, "--connect-seconds", "0.3", "--processes", processes)

    assert line.startswith(f"1 kvrouter: no NATS at {url.replace('ann:secret@', '')}: ")
    assert "secret" not in line


def test_servers_and_secrets() -> None:
    """Several servers are one setting; what is before an @ is never shown."""
    assert nats_servers("nats://a:1, tls://u:p@b:2") == ["nats://a:1", "tls://u:p@b:2"]
    assert without_secrets("nats://a:1, tls://u:p@b:2") == "nats://a:1,tls://b:2"
    for wrong in ("", "a:1", "nats://", "nats://a:x", "nats://a:1/path"):
        with pytest.raises(SettingsError):
            nats_servers(wrong)


def test_who_we_are_at_nats(tmp_path: Path) -> None:
    """A-438: by file, by variables, or nobody."""
    file = tmp_path / "user.creds"
    file.write_text("x", encoding="utf-8")

    assert nats_credentials(GatewaySettings(), {}) == {}
    assert nats_credentials(GatewaySettings(), {"NATS_AUTH_TOKEN": "t"}) == {"token": "t"}
    assert nats_credentials(GatewaySettings(nats_credentials=file), {}) == {"user_credentials": str(file)}
    with pytest.raises(SettingsError, match="absent"):
        nats_credentials(GatewaySettings(nats_credentials=tmp_path / "absent"), {})


def test_tls_needs_both_halves_of_a_certificate(tmp_path: Path) -> None:
    """A-438: and files that are what they should be."""
    certificate, key = CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem"

    assert nats_tls(GatewaySettings()) is None
    assert nats_tls(GatewaySettings(nats_tls_ca=certificate)) is not None
    assert nats_tls(GatewaySettings(nats_tls_certificate=certificate, nats_tls_key=key)) is not None
    for wrong in (
        GatewaySettings(nats_tls_certificate=certificate),
        GatewaySettings(nats_tls_ca=tmp_path / "absent"),
        GatewaySettings(nats_tls_ca=key),
    ):
        with pytest.raises(SettingsError, match="nats_tls"):
            nats_tls(wrong)


def test_tls_and_a_token_all_the_way(tmp_path: Path) -> None:
    """A-438: clients over TLS with a key, NATS over TLS with a token; a wrong key gets nowhere."""
    certificate, key = CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem"
    configuration = f"tls {{ cert_file: '{certificate}', key_file: '{key}' }}\nauthorization {{ token: hidden }}"
    environment = {
        "NATS_AUTH_TOKEN": "hidden",
        "NATS_TLS_CA": str(certificate),
        "KVROUTER_API_KEYS": "client",
        "KVROUTER_ADMIN_KEYS": "admin",
    }
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with nats_server(tmp_path, configuration=configuration) as server:
        server_at = server.url.replace("nats://127.0.0.1", "tls://localhost")
        process = GatewayProcess(tmp_path, server_at, *options, environment=environment)
        try:
            found = {}
            with httpx.Client(base_url=process.url, verify=False, timeout=60) as client:
                for name in ("", "client", "admin", "wrong"):
                    headers = {"authorization": f"Bearer {name}"} if name else {}
                    found[name] = [
                        client.get("/health", headers=headers).status_code,
                        client.post(INFER, json=infer("echo"), headers=headers).status_code,
                        client.get("/admin/routes", headers=headers).status_code,
                    ]
        finally:
            process.stop()

    assert found == {"": [200, 401, 401], "client": [200, 503, 403], "admin": [200, 503, 200], "wrong": [200, 401, 401]}


def test_without_keys_a_page_of_another_site_gets_nothing(shared: GatewayProcess) -> None:
    """A browser on this machine sends what any page says."""
    own = shared.url.removeprefix("http://")

    foreign = shared.post(INFER, infer("echo"), origin="https://evil.example")
    ours = shared.post(INFER, infer("echo"), origin=f"http://{own}")

    assert (foreign.status_code, ours.status_code) == (403, 200)


def test_a_head_has_a_size_and_a_time(shared: GatewayProcess, server: NatsServer, tmp_path: Path) -> None:
    """A client that never ends its head is cut, also on a connection that has served requests; bodies are no heads."""
    assert shared.post(INFER, infer("echo", "x" * 200_000)).status_code == 200
    with gateway(tmp_path, server, "--header-seconds", "1") as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        for sent in (b"", b"GET /live HTTP/1.1\r\nx: ", b"GET /live HTTP/1.1\r\nhost: x\r\n\r\nGET /li"):
            with socket.create_connection(address, timeout=60) as slow:
                slow.sendall(sent)
                assert read_to_end(slow).count(b"alive") <= sent.count(b"\r\n\r\n")
        with socket.create_connection(address, timeout=60) as large:
            large.sendall(b"GET /live HTTP/1.1\r\nx: " + b"y" * 70_000)
            assert read_to_end(large) == b""


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side has had enough."""
    read = bytearray()
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65_536):
            read += more
    return bytes(read)


def test_a_stop_waits_for_what_runs(server: NatsServer, service: ScriptedProcess, tmp_path: Path) -> None:
    """On SIGTERM it is not ready, finishes what is under way, and ends with 0."""
    with gateway(tmp_path, server, "--unready-seconds", "60") as running:
        found: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(running.url + INFER, json=infer("count:wait", "stop"), timeout=60))
        )
        asking.start()
        with httpx.stream(
            "POST", running.url + INFER, json=infer("one_then_wait", "stop", stream=True), timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.signal(signal.SIGTERM)
            eventually(lambda: running.client.get("/ready").status_code == 503)
            live = running.client.get("/live").status_code
            service.go("stop")
            rest = events_of("\n".join(lines))
        asking.join()
        running.signal(signal.SIGTERM)  # Once more: nobody needs to notice that it is not ready any more.
        code = running.wait()

    assert (live, code, found[0].status_code) == (200, 0, 200)
    assert rest[-1][1]["is_final"] is True


def test_what_does_not_end_in_time_is_told_so(server: NatsServer, service: ScriptedProcess, tmp_path: Path) -> None:
    """Streams end with an error event, not with a connection that breaks."""
    with gateway(tmp_path, server, "--drain-seconds", "0.2") as running:
        with httpx.stream(
            "POST", running.url + INFER, json=infer("one_then_wait", "cut", stream=True), timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.signal(signal.SIGTERM)
            rest = events_of("\n".join(lines))
        code = running.wait()

    assert code == 0
    assert (rest[-1][0], rest[-1][1]["error"]["code"]) == ("error", "UNAVAILABLE")
    service.go("cut")


def test_the_connection_to_nats_is_kept_as_the_seed_says() -> None:
    """A-438: for ever, every 2 s, a ping every 20 s, 3 of them without an answer."""
    assert nats_link.RECONNECT_SECONDS == 2
    assert (nats_link.PING_SECONDS, nats_link.PINGS_OUTSTANDING_MAX) == (20, 3)
    assert (nats_link.PENDING_MESSAGES_MAX, nats_link.PENDING_BYTES_MAX) == (256, 1 << 20)


def test_what_is_logged_has_no_contents(server: NatsServer, service: ScriptedProcess, tmp_path: Path) -> None:
    """Prompts, tokens and keys are in no line, also of requests that fail."""
    with gateway(tmp_path, server, "--log-level", "debug") as running:
        for act in ("echo", "fail:INTERNAL", "garbage"):
            running.post(INFER, infer(act, "a secret prompt", idempotency_key="a secret key"), x_user_id="secret user")
        running.signal(signal.SIGTERM)
        running.wait()
        told = running.output.read_text() + running.errors.read_text()

    assert "secret" not in told
    assert all(json.loads(line) for line in told.splitlines())
