"""Writes the table of metrics in docs/operations.md from a scrape.

`curl -s http://127.0.0.1:8080/metrics | python -m kvrouter.service.metrics_reference` prints it; label names are known
only of families that have samples, so let the router serve, select and refuse something first.

A test compares the page with what a real router says, so the names cannot drift from the code.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["DocumentedMetric", "documented_metrics", "scraped_metrics", "table"]

_HEAD = "| metric | type | labels | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentedMetric:
    """One family as operators see it: the name is the one that queries use."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def scraped_metrics(text: str) -> Iterator[DocumentedMetric]:
    """Yield our families of a scrape; labels are known only where there are samples."""
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("kvrouter_"):
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        yield DocumentedMetric(
            name=family.name + ("_total" if family.type == "counter" else ""),
            kind=family.type,
            labels=tuple(sorted(labels)),
            meaning=family.documentation,
        )


def table(metrics: Iterator[DocumentedMetric]) -> str:
    """Return the metrics as a Markdown table."""
    return _HEAD + "".join(
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.meaning} |\n"
        for each in metrics
    )


def documented_metrics(page: str) -> Iterator[DocumentedMetric]:
    """Yield the rows of the table in a page."""
    for line in page.splitlines():
        if not line.startswith("| `kvrouter_"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4:
            name, kind, labels, meaning = cells
            names = tuple(label.strip("`") for label in labels.split(", ") if label)
            yield DocumentedMetric(name=name.strip("`"), kind=kind, labels=names, meaning=meaning)


if __name__ == "__main__":
    sys.stdout.write(table(scraped_metrics(sys.stdin.read())))
