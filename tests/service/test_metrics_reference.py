"""The metrics that docs/operations.md names are those of a real router, with these types, labels and meanings."""

import re
from pathlib import Path

import httpx
import pytest

from kvrouter.service.metrics_reference import documented_metrics, scraped_metrics, table
from tests.service.processes import Processes, Router, eventually

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
PROMPT = {"prompt": list(range(64)), "max_tokens": 1}


@pytest.fixture
def scrape(processes: Processes) -> str:
    """What a router says that has served, selected and refused."""
    engine = processes.engine()
    router: Router = processes.router("--worker", engine.spec, workers=1)
    router.post("/v1/completions", PROMPT)
    router.post("/select", {"token_ids": PROMPT["prompt"]})
    httpx.get(router.url, headers={"Expect": "a miracle"})

    def text() -> str | None:
        found = httpx.get(f"{router.url}/metrics").text
        return found if 'kvrouter_worker_outcomes_total{outcome="ok"' in found else None

    return eventually(text)


def test_the_page_lists_every_metric_of_a_scrape(scrape: str) -> None:
    """When this fails, write the table anew as the head of `metrics_reference.py` says."""
    documented = {each.name: each for each in documented_metrics(PAGE)}
    scraped = {each.name: each for each in scraped_metrics(scrape)}

    assert documented.keys() == scraped.keys()
    for name, each in scraped.items():
        assert (documented[name].kind, documented[name].meaning) == (each.kind, each.meaning)
        if each.labels:
            assert documented[name].labels == each.labels


def test_no_page_names_a_metric_that_is_not_there(scrape: str) -> None:
    """In prose and in queries too."""
    known = {each.name for each in scraped_metrics(scrape)}

    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        named = set(re.findall(r"kvrouter_[a-z_]+[a-z]\b", page.read_text(encoding="utf-8")))
        named -= {"kvrouter_publishers", "kvrouter_subscribers"}
        histograms = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
        assert histograms <= known, page.name


def test_a_table_is_read_as_it_is_written(scrape: str) -> None:
    """Otherwise the page could say anything."""
    metrics = list(scraped_metrics(scrape))

    assert list(documented_metrics(table(iter(metrics)))) == metrics
