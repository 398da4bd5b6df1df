"""A router and a worker of one environment: mutual TLS between them, and a token; who has none gets nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.planes.processes import PlaneProcesses
from tests.service.processes import eventually
from tests.transport.authority import Authority

QUESTION = {"model": "simulated", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2}
TOKEN = "the-routers-own-secret"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[PlaneProcesses]:
    """What runs, stopped at the end."""
    started = PlaneProcesses(tmp_path)
    try:
        yield started
    finally:
        started.stop()


def files(folder: Path) -> dict[str, str]:
    """The variables of one machine: its certificate, for whoever dials it and whomever it dials."""
    authority = Authority(folder)
    cert_path, key_path = authority.issue("machine")
    names = {
        "CERT_PATH": cert_path, "KEY_PATH": key_path, "CLIENT_CA_CERT_PATH": authority.path,
        "CA_CERT_PATH": authority.path, "CLIENT_CERT_PATH": cert_path, "CLIENT_KEY_PATH": key_path,
        "HANDSHAKE_TIMEOUT_SECS": "60",
    }  # fmt: skip
    return {f"KVROUTER_TCP_TLS_{name}": value for name, value in names.items()}


def test_a_router_and_a_worker_prove_themselves_to_each_other(processes: PlaneProcesses, tmp_path: Path) -> None:
    """A-139, A-140: real processes; a router without the token is refused and counted, and no log has the token."""
    tls = files(tmp_path / "tls")
    engine = processes.engine()
    worker = processes.worker(
        engine.url, "--transport", "tcp", environment={**tls, "KVROUTER_REQUEST_API_KEYS": f"router={TOKEN}"}
    )
    router = processes.plane_router(environment={**tls, "KVROUTER_REQUEST_TOKEN": TOKEN})
    eventually(lambda: router.schedulable(1))

    assert router.post("/v1/chat/completions", QUESTION).status_code == 200

    refused = 'work_handler_refused_total{reason="unauthenticated"}'
    assert worker.figures()[refused] == 0
    stranger = processes.plane_router(environment=tls)
    eventually(lambda: stranger.post("/v1/chat/completions", QUESTION).status_code != 200 and worker.figures()[refused])
    assert TOKEN not in "".join(each.read_text() for each in tmp_path.rglob("*.log"))
