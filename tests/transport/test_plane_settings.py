"""Settings of the planes from the environment: a table of what is parsed into what (A-205, A-214, A-241 to A-247)."""

import re
import socket
from pathlib import Path

import pytest

from kvrouter.errors import SettingsError
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.plane_settings import PlaneSettings, log_levels, plane_settings
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.variables import PREFIXES
from tests.transport.conformance import run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planes.md").read_text(encoding="utf-8")
READ: list[tuple[str, str, str, object]] = [
    ("REQUEST_PLANE", "nats", "request_plane", "nats"),
    ("REQUEST_PLANE", " HTTP ", "request_plane", "http"),
    ("REQUEST_PLANE", "Http2", "request_plane", "http"),
    ("REQUEST_PLANE", "", "request_plane", "tcp"),
    ("RESPONSE_PLANE", "http", "response_plane", "http"),
    ("EVENT_PLANE", "nats", "event_plane", "nats"),
    ("TCP_REQUEST_HOST", "10.0.0.1", "tcp.host", "10.0.0.1"),
    ("TCP_REQUEST_PORT", "0", "tcp.port", 0),
    ("TCP_REQUEST_PORT", "65535", "tcp.port", 65_535),
    ("TCP_REQUEST_MAX_CONNECTIONS", "7", "tcp.connections_max", 7),
    ("TCP_REQUEST_HEARTBEAT_INTERVAL_SECS", "2.5", "tcp.heartbeat.interval_seconds", 2.5),
    ("TCP_REQUEST_CONNECTION_TIMEOUT_SECS", "90", "tcp.heartbeat.timeout_seconds", 90.0),
    ("TCP_MAX_MESSAGE_SIZE", "1048576", "tcp.limits.message_bytes_max", 1 << 20),
    ("TCP_MAX_MESSAGE_SIZE", "1048576", "tcp.limits.assembling_bytes_max", 4 << 20),
    ("TCP_RESPONSE_STREAM_HOST", "router", "call_home.host", "router"),
    ("TCP_RESPONSE_STREAM_PORT", "4000", "call_home.port", 4000),
    ("TCP_POOL_ENABLED", "false", "pool.enabled", False),
    ("TCP_POOL_ENABLED", "0", "pool.enabled", False),
    ("TCP_POOL_ENABLED", "TRUE", "pool.enabled", True),
    ("TCP_POOL_MAX_PER_TARGET", "100", "pool.connections_max", 100),
    ("TCP_POOL_MIN_IDLE", "0", "pool.idle_min", 0),
    ("TCP_POOL_IDLE_TIMEOUT_SECS", "10", "pool.idle_seconds", 10.0),
    ("TCP_POOL_MAX_LIFETIME_SECS", "20", "pool.lifetime_seconds", 20.0),
    ("TCP_POOL_KEEPALIVE_SECS", "30", "pool.keepalive_seconds", 30.0),
]
REFUSED = [
    ("REQUEST_PLANE", "pigeon"),
    ("RESPONSE_PLANE", "nats"),
    ("COMPAT", "other"),
    ("EVENT_PLANE", "tcp"),
    ("TCP_REQUEST_PORT", "65536"),
    ("TCP_REQUEST_PORT", "tcp://10.0.0.1:9001"),
    ("TCP_REQUEST_PORT", "-1"),
    ("TCP_REQUEST_MAX_CONNECTIONS", "0"),
    ("TCP_REQUEST_HEARTBEAT_INTERVAL_SECS", "0"),
    ("TCP_REQUEST_CONNECTION_TIMEOUT_SECS", "nan"),
    ("TCP_REQUEST_CONNECTION_TIMEOUT_SECS", "30"),
    ("TCP_MAX_MESSAGE_SIZE", "ten"),
    ("TCP_POOL_ENABLED", "perhaps"),
    ("TCP_POOL_MAX_PER_TARGET", "0"),
    ("TCP_POOL_MIN_IDLE", "51"),
    ("TCP_POOL_IDLE_TIMEOUT_SECS", "inf"),
]


def _get(settings: object, path: str) -> object:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("name", "value", "path", "read"), READ)
def test_variables_are_read(prefix: str, name: str, value: str, path: str, read: object) -> None:
    """A-102, A-149, A-205, A-214, A-241, A-243, A-245, A-246: under both prefixes."""
    assert _get(plane_settings({prefix + name: value}), path) == read


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_no_value_names_its_variable(prefix: str, name: str, value: str) -> None:
    """A-102: one line that can be acted on."""
    with pytest.raises(SettingsError, match=name):
        plane_settings({prefix + name: value})


def test_nothing_set_means_our_own_defaults() -> None:
    """A-152, A-241, A-243, A-245, A-246: multiplexed TCP, and a pool."""
    settings = plane_settings({})

    assert settings == PlaneSettings()
    assert (settings.request_plane, settings.response_plane) == ("tcp", "tcp")
    assert settings.pool == PoolSettings(
        enabled=True, connections_max=50, idle_min=5, idle_seconds=300, lifetime_seconds=3600, keepalive_seconds=60
    )
    assert (settings.tcp.host, settings.tcp.port, settings.tcp.connections_max) == ("0.0.0.0", 9001, 1000)
    assert settings.tcp.heartbeat == Heartbeat(interval_seconds=30, timeout_seconds=60)


def test_the_seeds_defaults_can_be_had() -> None:
    """A-010, A-205, A-206: and what is set besides still counts."""
    like_seed = plane_settings({"KVROUTER_COMPAT": "seed"})
    besides = plane_settings({"KVROUTER_COMPAT": "seed", "DYN_REQUEST_PLANE": "http", "DYN_TCP_POOL_ENABLED": "true"})

    assert (like_seed.request_plane, like_seed.response_plane, like_seed.pool.enabled) == ("nats", "tcp", False)
    assert (besides.request_plane, besides.pool.enabled) == ("http", True)
    assert (like_seed.event_plane, besides.event_plane) == ("nats", "zmq")


def test_our_own_prefix_wins() -> None:
    """The other one is accepted with lower precedence; an empty one is not set."""
    both = {"DYN_TCP_REQUEST_PORT": "1", "KVROUTER_TCP_REQUEST_PORT": "2"}

    assert plane_settings(both).tcp.port == 2
    assert plane_settings(both | {"KVROUTER_TCP_REQUEST_PORT": ""}).tcp.port == 1


def test_levels_of_loggers_are_read() -> None:
    """A-247: one for all, others for some."""
    assert log_levels({"KVROUTER_LOG": "info, kvrouter.transport.pool=DEBUG,"}) == {
        "": "info",
        "kvrouter.transport.pool": "debug",
    }
    assert log_levels({}) == {}
    with pytest.raises(SettingsError, match="loud"):
        log_levels({"KVROUTER_LOG": "kvrouter=loud"})


def test_the_variables_of_the_page_are_those_that_are_read() -> None:
    """Names and defaults; what each row says is the default, set as such, changes nothing."""
    table = PAGE.partition("\n## Environment\n")[2].partition("\n| name |")[2].partition("\n\n")[0].splitlines()[2:]
    stated = {
        row[0].strip("`"): row[1].strip("`")
        for row in ([cell.strip() for cell in line.split("|")[1:]] for line in table)
    }

    assert set(stated) == {name for name, *_ in READ} | {"COMPAT"}
    assert plane_settings({f"KVROUTER_{name}": value for name, value in stated.items()}) == PlaneSettings()
    assert re.search(r"KVROUTER_LOG=", PAGE)


def test_connections_home_are_kept_alive_by_the_kernel() -> None:
    """A-205: as the pool's settings say."""

    async def scenario() -> None:
        listener, worker = CallHomeListener(), CallHomeWorker(Endpoints(), pool=PoolSettings(keepalive_seconds=30.0))
        await listener.start()
        connection = await worker.pool.acquire(listener.address, seconds=30)
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        read = [raw.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert read == [30, 10]
        worker.pool.release(listener.address, connection, reusable=False)
        await worker.close()
        await listener.close()

    run(scenario())
