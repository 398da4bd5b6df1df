"""What the gateway tells Prometheus, by the names that its dashboards know (A-425)."""

import re
from pathlib import Path

from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.cutover import Shares
from kvrouter.gateway.metrics import exposition
from tests.gateway.scene import INFER, GatewayProcess, infer
from tests.service.processes import eventually

PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"


def test_requests_errors_streams_and_the_connection_are_counted(shared: GatewayProcess) -> None:
    """A-425: latency and errors by route and status, whether NATS is there, how many streams are open."""
    labels = {"route": "ai/llm/infer"}
    before = [shared.metric("gateway_request_latency_seconds_count", code=code, **labels) for code in ("200", "404")]

    shared.post(INFER, infer("echo"))
    shared.post(INFER, infer("fail:NOT_FOUND"))
    shared.post(INFER, infer("chunks:1", stream=True))

    # What is streamed is counted when it has ended, which the client may know before.
    assert shared.eventually_metric("gateway_request_latency_seconds_count", before[0] + 2, code="200", **labels)
    assert shared.metric("gateway_request_latency_seconds_count", code="404", **labels) == before[1] + 1
    assert shared.metric("gateway_errors_total", code="404", **labels) >= 1
    assert shared.metric("gateway_nats_connected") == 1
    assert eventually(lambda: shared.metric("gateway_sse_active") == 0)
    assert shared.eventually_metric("gateway_streams_ended_total", 1, ending="final")
    assert shared.metric("gateway_cutover_ratio", **labels) == 1


def full() -> GatewayCounters:
    """Counters with something of everything."""
    counters = GatewayCounters()
    for family, *labels in (
        ("errors", "r", "404"), ("disconnects", "r"), ("refused", "401"), ("streams_ended", "final"),
        ("idempotency", "kept"), ("shadow", "r", "match"), ("nats_events", "connected"),
    ):  # fmt: skip
        counters.count(family, *labels)
    counters.observe("r", 200, 0.002)
    counters.gauges["idempotency_bytes"] = 5
    counters.connected, counters.streams_active = 1, 2
    return counters


def test_counters_of_several_processes_add_up() -> None:
    """They come as JSON; the connection is only there if all have one."""
    one, other = full(), GatewayCounters.from_json(full().as_json())
    other.connected = 0

    one.add(other)

    text = exposition(one, {"r": Shares(0.1, 0.0)}, processes=2, processes_read=2).decode()
    for line in (
        'gateway_request_latency_seconds_bucket{code="200",le="0.0025",route="r"} 2.0',
        'gateway_errors_total{code="404",route="r"} 2.0',
        "gateway_sse_active 4.0",
        "gateway_nats_connected 0.0",
        "gateway_idempotency_bytes 10.0",
        'gateway_cutover_ratio{route="r"} 0.1',
    ):
        assert line in text


def test_the_page_lists_every_metric_and_no_other() -> None:
    """Names cannot drift from the code."""
    text = exposition(full(), {"r": Shares(1.0, 0.0)}, processes=1, processes_read=1).decode()
    told = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE gateway_")}
    told = {name for name in told if not name.endswith("_created")}

    documented = set(re.findall(r"^\| `(gateway_[a-z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))

    assert documented == told
