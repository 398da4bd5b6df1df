"""Who binds, and where rank N is: the address rules that engines and we share."""

import pytest

from kvrouter.errors import SettingsError
from kvrouter.events.endpoints import check_endpoint, publisher_binds, rank_endpoint


@pytest.mark.parametrize(
    "endpoint", ["tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557", "ipc:///run/kv", "inproc://kv"]
)
def test_a_publisher_owns_wildcards_paths_and_names(endpoint: str) -> None:
    """VLLM's rule: nobody could connect to these from elsewhere before somebody bound them."""
    assert publisher_binds(endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5557", "tcp://router:5557", "tcp://[2001:db8:0:0:0:0:0:1]:5557"])
def test_a_publisher_connects_to_a_concrete_address(endpoint: str) -> None:
    """A central consumer is waiting there."""
    assert not publisher_binds(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://*:5557", 0, "tcp://*:5557"),
        ("tcp://*:5557", 3, "tcp://*:5560"),
        ("tcp://[::1]:5557", 1, "tcp://[::1]:5558"),
        ("tcp://*:0", 2, "tcp://*:0"),
        ("tcp://127.0.0.1:*", 2, "tcp://127.0.0.1:*"),
        ("ipc:///run/kv", 1, "ipc:///run/kv_dp1"),
        ("inproc://kv", 2, "inproc://kv_dp2"),
    ],
)
def test_ranks_have_neighbouring_addresses(endpoint: str, rank: int, expected: str) -> None:
    """Ports count up; ports that the system chooses stay its choice; names get a suffix."""
    assert rank_endpoint(endpoint, rank) == expected


def test_a_rank_beyond_the_last_port_is_refused() -> None:
    """Better said at start than found as a strange bind error."""
    with pytest.raises(SettingsError, match="rank 9"):
        rank_endpoint("tcp://*:65530", 9)


@pytest.mark.parametrize(
    "endpoint",
    ["", "5557", "http://host:5557", "tcp://", "tcp://host", "tcp://host:http", "tcp://host:70000", "ipc://"],
)
def test_a_malformed_endpoint_is_refused_by_name(endpoint: str) -> None:
    """The message repeats what was written."""
    with pytest.raises(SettingsError, match="event endpoint"):
        check_endpoint(endpoint)
