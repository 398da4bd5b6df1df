"""Real servers for the transports that need one; one for all tests of a module, because subjects keep them apart."""

from collections.abc import Iterator

import pytest

from tests.servers import NatsServer, nats_server


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server
