"""What changed settings tell Prometheus."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import Metric

from kvrouter.service.configuration.running import ChangeSource, RunningSettings
from kvrouter.service.metric_families import counter, gauge

__all__ = ["config_metrics"]


def config_metrics(running: RunningSettings) -> Iterator[Metric]:
    """Yield the families; there are always all of them."""
    for name, text, counts in (
        ("config_changes", "Settings that got another value while the router ran.", running.applied),
        ("config_refused", "Changes of settings that were not valid, of which nothing was applied.", running.refused),
    ):
        yield counter(
            name, text, ("source",), [((source,), float(counts[source])) for source in get_args(ChangeSource)]
        )
    for name, text, value in (
        ("config_overrides", "Settings that have another value than at the start.", len(running.overrides)),
        ("config_revision", "Revision of the store's key that is in force; 0: none.", running.revision or 0),
        ("config_changed_timestamp_seconds", "When a setting changed last; 0: never.", running.changed_at or 0.0),
        ("config_store_up", "1 where the store of settings answers; 0 too where there is none.", running.store_up),
    ):
        yield gauge(name, text, (), [((), float(value))])
    text = "Questions to the store of settings that failed."
    yield counter("config_store_failures", text, (), [((), float(running.store_failures))])
