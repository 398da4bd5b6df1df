"""A router that is told to stop before it has started."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prompts.models import CHATML, save_model, tokenizer_of
from tests.servers import nats_server, redis_server
from tests.service.processes import eventually


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        yield Path(folder)


def test_a_router_told_to_stop_while_it_loads_ends_well(tmp_path: Path, temporary: Path) -> None:
    """Exit 0, and nothing is left in the temporary folder."""
    model = save_model(tmp_path, tokenizer_of("chatml"), chat_template=CHATML)
    models = [f"--tokenizer=m{number}={model}" for number in range(200)]
    with subprocess.Popen(
        [sys.executable, "-m", "kvrouter", "serve", "--port=0", *models],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as router:
        eventually(lambda: list(temporary.iterdir()) or router.poll() is not None)
        router.send_signal(signal.SIGTERM)
        _, errors = router.communicate(timeout=120)

    assert router.returncode == 0, errors
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", ["nats", "redis"])
def test_a_router_told_to_stop_while_its_store_stands_still_ends_at_once(
    tmp_path: Path, temporary: Path, kind: str
) -> None:
    """Exit 0, long before the store is given up; nothing was begun."""
    with nats_server(tmp_path) if kind == "nats" else redis_server(tmp_path) as server, server.paused():
        url = f"{server.url}/KV" if kind == "nats" else f"{server.url}/0/kv"
        with subprocess.Popen(
            [sys.executable, "-m", "kvrouter", "serve", "--port=0", f"--snapshots={url}"],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(temporary)},
        ) as router:
            eventually(lambda: list(temporary.iterdir()) or router.poll() is not None)
            router.send_signal(signal.SIGTERM)
            output, _ = router.communicate(timeout=120)

    assert router.returncode == 0
    assert b"listening" not in output
