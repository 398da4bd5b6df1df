"""What calls to workers over the planes tell Prometheus, under the names that dashboards of Dynamo know."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kvrouter.discovery.metrics import DiscoveryMetrics
from kvrouter.transport.metrics import PlaneMetrics

__all__ = ["PlaneFigures"]

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0)


class PlaneFigures:
    """All families of the planes, on the router's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.transports = PlaneMetrics(registry)
        self.discovery = DiscoveryMetrics(registry)
        self.queue_seconds = _histogram(
            registry, "queue_seconds", "From the decision to the moment when the call leaves."
        )
        self.send_seconds = _histogram(registry, "send_seconds", "Until a worker has taken the call.")
        self.ttft_seconds = _histogram(
            registry, "roundtrip_ttft_seconds", "From leaving to the first item of the answer."
        )
        self.inflight = Gauge("request_plane_inflight", "Calls that are open.", registry=registry)
        self.changes = Counter("request_plane_changes", "Changes of the preferred plane.", registry=registry)
        self.refused_changes = Counter(
            "request_plane_refused_changes", "Values of the switch that name no plane.", registry=registry
        )


def _histogram(registry: CollectorRegistry, name: str, text: str) -> Histogram:
    return Histogram(f"request_plane_{name}", text, buckets=_BUCKETS, registry=registry)
