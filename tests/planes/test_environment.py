"""Flags, settings and the planes' own variables together say how a router reaches workers, and how a worker serves."""

import argparse
import asyncio
import io
import json
import logging
from pathlib import Path

import httpx
import pytest

from kvrouter.cli import main
from kvrouter.errors import SettingsError
from kvrouter.service.logs import configure_logging, log_event
from kvrouter.service.planes.environment import PLANE_VARIABLES, plane_choices
from kvrouter.service.planes.ways import PlaneChoices
from kvrouter.settings import PlaneSettings, Settings
from kvrouter.settings_sources import add_settings_flags, load_settings
from kvrouter.transport.messages import Request, encode_request
from kvrouter.worker.command import add_parser
from kvrouter.worker.serving import WorkerOptions, serving, worker_options


def router(*flags: str, **environment: str) -> PlaneChoices | None:
    """What a router makes of flags and variables."""
    parser = argparse.ArgumentParser()
    add_settings_flags(parser)
    settings = load_settings(parser.parse_args(flags), environment, elsewhere=PLANE_VARIABLES)
    return plane_choices(settings, environment)


def chosen(*flags: str, **environment: str) -> PlaneChoices:
    """The same of a router that follows discovery."""
    found = router("--discovery", "file:///tmp/x", *flags, **environment)
    assert found is not None
    return found


def worker(*flags: str, **environment: str) -> WorkerOptions:
    """What a worker makes of them."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    given = ("worker", "http://127.0.0.1:8000,events=tcp://127.0.0.1:5557,api_key=k", "--discovery", "file:///x")
    return worker_options(parser.parse_args([*given, *flags]), environment)


def test_a_router_that_follows_no_discovery_has_no_planes() -> None:
    """A-011, A-012: nothing of all this is made, whatever the environment says."""
    assert router(KVROUTER_REQUEST_PLANE="nats", NATS_SERVER="nats://10.0.0.1:4222") is None
    assert plane_choices(Settings(planes=PlaneSettings()), {}) is None


def test_the_planes_variables_are_no_misspelt_settings() -> None:
    """A-241 to A-246: all of them may be set for a router; what is one letter off still ends it."""
    everything = {
        "KVROUTER_REQUEST_PLANE": "http", "KVROUTER_RESPONSE_PLANE": "http", "KVROUTER_TCP_REQUEST_PORT": "9001",
        "KVROUTER_TCP_POOL_ENABLED": "true", "KVROUTER_HTTP_RPC_PORT": "8081", "KVROUTER_HTTP_REQUEST_TIMEOUT": "7",
        "DYN_HTTP_RESPONSE_STREAM_FORMAT": "ndjson", "KVROUTER_COMPAT": "seed",
    }  # fmt: skip

    found = chosen(**everything)

    assert (found.preferred, found.http.acknowledge_seconds) == ("http", 7)
    assert not everything.keys() - PLANE_VARIABLES
    with pytest.raises(SettingsError, match="KVROUTER_TCP_REQUEST_PROT; did you mean KVROUTER_TCP_REQUEST_PORT"):
        chosen(KVROUTER_TCP_REQUEST_PROT="1")
    with pytest.raises(SettingsError, match="KVROUTER_TCP_REQUEST_PORT='none'"):
        router(KVROUTER_TCP_REQUEST_PORT="none")


@pytest.mark.parametrize(
    ("flags", "environment", "preferred", "nats_server"),
    [
        ((), {}, "tcp", ""),
        ((), {"DYN_REQUEST_PLANE": "http"}, "http", ""),
        ((), {"DYN_REQUEST_PLANE": "http", "KVROUTER_REQUEST_PLANE": "zmq"}, "zmq", ""),
        (("--request-plane", "grpc"), {"KVROUTER_REQUEST_PLANE": "zmq"}, "grpc", ""),
        ((), {"KVROUTER_COMPAT": "seed"}, "nats", "nats://127.0.0.1:4222"),
        (("--request-plane", "nats"), {"NATS_SERVER": "nats://10.0.0.1:4222"}, "nats", "nats://10.0.0.1:4222"),
        (("--request-plane", "http"), {"NATS_SERVER": "nats://10.0.0.1:4222"}, "http", ""),
        (("--nats-server", "nats://10.0.0.2:4222"), {}, "tcp", "nats://10.0.0.2:4222"),
    ],
)
def test_which_plane_a_router_prefers(
    flags: tuple[str, ...], environment: dict[str, str], preferred: str, nats_server: str
) -> None:
    """A-010, A-102, A-116, A-241, D-1, D-4: flags, then KVROUTER_, then DYN_; NATS only where somebody asks for it."""
    found = chosen(*flags, **environment)

    assert (found.preferred, found.nats_server) == (preferred, nats_server)


def test_a_worker_serves_where_its_variables_say() -> None:
    """A-103, A-104, A-241, A-242, A-246: else on loopback, on a free port."""
    plain = worker()
    assert (plain.transports, plain.host, plain.servers.tcp.port) == (("tcp",), "127.0.0.1", 0)
    assert (plain.servers.http.rpc_port, plain.servers.response_port, plain.nats_server) == (0, None, None)

    found = worker(
        KVROUTER_REQUEST_PLANE="http", DYN_HTTP_RPC_HOST="10.0.0.1", DYN_HTTP_RPC_PORT="8081",
        DYN_HTTP_RPC_ROOT_PATH="/v1/dynamo", DYN_HTTP_RESPONSE_PORT="8082", KVROUTER_REQUEST_API_KEYS="one=key",
    )  # fmt: skip
    assert (found.transports, found.host, found.servers.http.rpc_port) == (("http",), "10.0.0.1", 8081)
    assert (found.servers.http.rpc_root, found.servers.response_port) == ("/v1/dynamo", 8082)

    tcp = worker("--host", "10.0.0.2", "--insecure", DYN_TCP_REQUEST_HOST="10.0.0.1", DYN_TCP_REQUEST_PORT="9001")
    assert (tcp.host, tcp.servers.tcp.port) == ("10.0.0.2", 9001)


@pytest.mark.parametrize("transport", ["tcp", "http", "zmq", "grpc"])
def test_a_worker_takes_nobodys_requests_from_other_machines_by_mistake(transport: str) -> None:
    """A-138: not without tokens, client certificates or keys, unless somebody says so."""
    flags = ("--transport", "nats", "--transport", transport, "--host", "0.0.0.0")
    with pytest.raises(SettingsError, match=f"refusing to bind 0.0.0.0 for {transport} .* or say --insecure"):
        worker(*flags)

    assert worker(*flags, "--insecure").host == "0.0.0.0"
    assert worker(*flags, KVROUTER_REQUEST_API_KEYS="one=key").host == "0.0.0.0"
    assert worker("--transport", "nats", "--host", "0.0.0.0").host == "0.0.0.0"


@pytest.mark.parametrize(
    ("transport", "environment"),
    [
        ("tcp", {"TCP_TLS_CERT_PATH": "c", "TCP_TLS_KEY_PATH": "k", "TCP_TLS_CLIENT_CA_CERT_PATH": "ca"}),
        ("http", {"HTTP_TLS_CERT_PATH": "c", "HTTP_TLS_KEY_PATH": "k", "HTTP_TLS_CLIENT_CA_CERT_PATH": "ca"}),
        ("grpc", {"GRPC_TLS_CERT_PATH": "c", "GRPC_TLS_KEY_PATH": "k", "GRPC_TLS_CLIENT_CA_CERT_PATH": "ca"}),
    ],
)
def test_clients_may_prove_themselves_by_certificates(transport: str, environment: dict[str, str]) -> None:
    """A-139: a server that asks for them is not open."""
    named = {f"KVROUTER_{name}": value for name, value in environment.items()}

    assert worker("--transport", transport, "--host", "0.0.0.0", **named).host == "0.0.0.0"


def test_what_a_worker_tells_of_itself_is_not_between_it_and_its_engine() -> None:
    """A-222: neither the engine's address nor its key stands in a record that others read."""
    found = worker("--transport", "nats", "--transport", "tcp", NATS_SERVER="nats://10.0.0.1:4222")

    assert (found.engine, found.api_key) == ("http://127.0.0.1:8000", "k")
    assert dict(found.told) == {"kv_events_endpoint": "tcp://127.0.0.1:5557"}
    assert (found.transports, found.nats_server) == (("nats", "tcp"), "nats://10.0.0.1:4222")


def test_answers_call_home_with_what_can_carry_an_acknowledgement(capsys: pytest.CaptureFixture[str]) -> None:
    """A-119, A-201: NATS, HTTP and TCP; another one ends the command with one line."""
    assert worker("--transport", "http", "--answers-home").answers_home

    assert main(["worker", "http://127.0.0.1:1", "--discovery", "x", "--transport", "zmq", "--answers-home"]) == 2
    assert capsys.readouterr().err == "kvrouter: --answers-home: answers call home with tcp, http, nats only\n"


@pytest.mark.parametrize(
    ("flags", "said", "home"),
    [
        (("--transport", "nats"), "", False),
        (("--transport", "nats"), "tcp", True),
        (("--transport", "http"), "tcp", True),
        (("--transport", "tcp", "--transport", "http"), "tcp", True),
        (("--transport", "tcp"), "tcp", False),
        (("--transport", "tcp", "--answers-home"), "tcp", True),
        (("--transport", "http"), "http", False),
    ],
)
@pytest.mark.parametrize("prefix", ["KVROUTER_", "DYN_"])
def test_the_response_plane_says_whether_answers_call_home(
    flags: tuple[str, ...], said: str, home: bool, prefix: str
) -> None:
    """A-207, A-231, A-243: where it is set; multiplexed TCP needs no connection of its own for answers."""
    assert worker(*flags, **{f"{prefix}RESPONSE_PLANE": said}).answers_home is home


@pytest.mark.parametrize(
    ("flags", "said", "why"),
    [
        (("--transport", "http", "--answers-home"), "http", "--answers-home contradicts DYN_RESPONSE_PLANE=http"),
        (("--transport", "http", "--transport", "nats"), "http", "DYN_RESPONSE_PLANE=http: .* not with nats"),
        (("--transport", "zmq"), "http", "DYN_RESPONSE_PLANE=http: .* not with zmq"),
        (("--transport", "grpc"), "tcp", "DYN_RESPONSE_PLANE=tcp: answers call home with tcp, http, nats only"),
    ],
)
def test_a_response_plane_that_cannot_be_ends_the_worker(flags: tuple[str, ...], said: str, why: str) -> None:
    """A-243: it does not serve in another way than it was told to."""
    with pytest.raises(SettingsError, match=why):
        worker(*flags, DYN_RESPONSE_PLANE=said)


def test_answers_have_a_host_of_their_own() -> None:
    """A-138, A-244: it counts as open like that of requests; without a port it has a free one."""
    loopback = worker("--transport", "http", DYN_HTTP_RESPONSE_HOST="127.0.0.2").servers
    assert (loopback.response_host, loopback.response_port) == ("127.0.0.2", 0)

    there = {"KVROUTER_HTTP_RESPONSE_HOST": "10.0.0.1", "DYN_HTTP_RESPONSE_PORT": "8082"}
    with pytest.raises(SettingsError, match=r"refusing to bind 10\.0\.0\.1 for http"):
        worker("--transport", "http", **there)
    found = worker("--transport", "http", "--insecure", **there)
    assert (found.host, found.servers.response_host, found.servers.response_port) == ("127.0.0.1", "10.0.0.1", 8082)
    assert worker("--transport", "tcp", **there).host == "127.0.0.1"


def test_answers_are_fetched_where_the_variable_says(tmp_path: Path) -> None:
    """A-208, A-244: the command's own server binds it, and tells clients so."""

    async def scenario() -> tuple[str, str]:
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        flags = ("worker", "http://127.0.0.1:1", "--discovery", tmp_path.as_uri(), "--transport", "http")
        found = worker_options(parser.parse_args(flags), {"KVROUTER_HTTP_RESPONSE_HOST": "127.0.0.2"})
        async with serving(found) as (served, _):
            message = encode_request(Request(endpoint="load_metrics"), id="one", headers={})
            headers = {"Content-Type": "application/octet-stream"}
            async with httpx.AsyncClient(timeout=60.0) as client:
                taken = await client.post(served.addresses["http"] + "/load_metrics", content=message, headers=headers)
                location = taken.headers["location"]
                return location, (await client.get(location)).text

    location, answer = asyncio.run(scenario())

    assert location.startswith("http://127.0.0.2:")
    assert "event: done" in answer


def test_the_event_plane_reaches_the_workers_reporting() -> None:
    """A-003: so that events over NATS beside another request plane are warned of."""
    assert worker(KVROUTER_EVENT_PLANE="nats").event_plane == "nats"
    assert worker().event_plane == "zmq"


def test_loggers_may_have_levels_of_their_own() -> None:
    """A-247: one for all, others by name; routers take it as workers do."""
    assert "KVROUTER_LOG" in PLANE_VARIABLES
    stream, before = io.StringIO(), logging.getLogger().handlers[:]
    try:
        configure_logging(level="info", style="json", levels={"": "error", "kvrouter.planes": "debug"}, stream=stream)
        for name in ("kvrouter.planes", "kvrouter.workers"):
            log_event(logging.getLogger(name), logging.DEBUG, "seen", who=name)
            log_event(logging.getLogger(name), logging.ERROR, "failed", who=name)
    finally:
        logging.getLogger("kvrouter.planes").setLevel(logging.NOTSET)
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(logging.WARNING)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["who"]) for line in lines] == [
        ("seen", "kvrouter.planes"), ("failed", "kvrouter.planes"), ("failed", "kvrouter.workers"),
    ]  # fmt: skip
