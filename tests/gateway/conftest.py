"""One NATS server, one service and one gateway for all tests that leave them as they were."""

from collections.abc import Iterator

import pytest

from tests.gateway.scene import GatewayProcess, ScriptedProcess, gateway, scripted_service
from tests.servers import NatsServer, nats_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server."""
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture(scope="session")
def service(server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedProcess]:
    """The service that does as it is told."""
    with scripted_service(tmp_path_factory.mktemp("service"), server) as running:
        yield running


@pytest.fixture(scope="session")
def shared(
    server: NatsServer, service: ScriptedProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway with its defaults, and a service behind it."""
    with gateway(tmp_path_factory.mktemp("gateway"), server) as running:
        yield running
