"""Prometheus' metric families from plain numbers, under our own prefix."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvrouter.service.traffic import Histogram

__all__ = ["Rows", "by_label", "counter", "gauge", "histogram"]

Rows: TypeAlias = Iterable[tuple[tuple[str, ...], float]]
"""Values of the labels, and the number."""


def by_label(counts: Mapping[Any, int]) -> Rows:
    """Return counts as rows of one label."""
    return [((str(label),), float(number)) for label, number in counts.items()]


def gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """Return a value of now."""
    return _filled(GaugeMetricFamily(f"kvrouter_{name}", text, labels=labels), rows)


def counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """Return a count since the start; `_total` is added to its name."""
    return _filled(CounterMetricFamily(f"kvrouter_{name}", text, labels=labels), rows)


def _filled(family: Any, rows: Rows) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    metric: Metric = family
    return metric


def histogram(name: str, text: str, measured: Histogram) -> Metric:
    """Return how often which values were seen."""
    family = HistogramMetricFamily(f"kvrouter_{name}", text)
    family.add_metric([], measured.cumulative(), measured.total)
    return family
