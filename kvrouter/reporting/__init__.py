"""What a worker process tells about itself: stats and load over NATS, gauges, and an endpoint that anybody may ask.

Which of it exists is the request plane's choice. With `nats` the worker answers and collects service stats and
publishes its load; with every other plane neither a task nor a connection of that kind exists, and the gauges and the
endpoint are there all the same. docs/http-mode.md is its page.

    reporting = Reporting("demo/backend", plane=planes.request_plane, nats_server="nats://broker:4222")
    async with (
        serve("demo/backend", reporting.handlers({"generate": generate}), store=store, transports=[plane]) as worker,
        reporting.running(worker.instance_id, worker.addresses),
    ):
        reporting.publish(LoadReport(worker_id="worker-a", num_requests_waiting=3))
"""

from kvrouter.reporting.kv_metrics import KvMetrics, KvMetricsApp
from kvrouter.reporting.reporting import Reporting

__all__ = ["KvMetrics", "KvMetricsApp", "Reporting"]
