"""NATS goes and comes back under load: requests fail at once and by name, streams end by an error, all goes on."""

import json
import threading
from collections import Counter
from pathlib import Path

import httpx

from tests.gateway.scene import INFER, events_of, gateway, infer, scripted_service
from tests.servers import nats_server
from tests.service.processes import eventually

CLIENTS = 2


def test_nats_restarts_under_load(tmp_path: Path) -> None:
    """A-407, A-438, A-439: 503 and 504 while it is away and nothing else, ready says so, and it recovers by itself."""
    with (
        nats_server(tmp_path) as server,
        scripted_service(tmp_path, server) as service,
        gateway(tmp_path, server, "--timeout-seconds", "20") as running,
    ):
        statuses: Counter[int] = Counter()
        ending = threading.Event()

        def load(number: int) -> None:
            with httpx.Client(base_url=running.url, timeout=60) as client:
                while not ending.is_set():
                    statuses[client.post(INFER, json=infer("echo", f"load {number}")).status_code] += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            with running.client.stream("POST", INFER, json=infer("one_then_wait", "open", stream=True)) as answer:
                lines = answer.iter_lines()
                first = json.loads(next(lines).removeprefix("data: "))
                eventually(lambda: statuses[200] >= 20)
                server.kill()
                rest = events_of("\n".join(lines))
            eventually(lambda: running.client.get("/ready").status_code == 503)
            health = running.client.get("/health")
            eventually(lambda: statuses[503] >= 20)
            away = running.post(INFER, infer("echo"))
            live = running.client.get("/live").status_code
            connected = running.metric("gateway_nats_connected")
            server.start()
            eventually(lambda: running.client.get("/ready").status_code == 200)
            before = statuses[200]
            eventually(lambda: statuses[200] >= before + 20)
            streamed = eventually(
                lambda: (
                    answer
                    if (answer := running.post(INFER, infer("chunks:2", stream=True))).status_code == 200
                    else None
                )
            )
        finally:
            ending.set()
            for thread in threads:
                thread.join()

    assert first["index"] == 0
    assert (rest[-1][0], rest[-1][1]["error"]["code"]) == ("error", "UNAVAILABLE")
    assert (health.status_code, health.json()["nats_connected"], live, connected) == (503, False, 200, 0)
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    assert set(statuses) <= {200, 503, 504}
    assert events_of(streamed.text)[-1][1]["is_final"] is True
    assert service is not None
