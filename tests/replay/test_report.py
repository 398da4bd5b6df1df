"""The HTML report: one file that needs nothing else, whatever traces and policies are called."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from kvrouter.replay.answer import find_out
from kvrouter.replay.findings import Findings
from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.measures import Goal
from kvrouter.replay.progress import Progress
from kvrouter.replay.questions import Questions
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.report import as_html
from kvrouter.replay.report.scales import linear, logarithmic
from kvrouter.replay.report.words import percent, round_seconds, seconds, thousands
from kvrouter.replay.results_json import as_document
from kvrouter.replay.results_table import as_text
from kvrouter.replay.runs import FixedTrace
from kvrouter.replay.synthetic import MultiTurn
from kvrouter.replay.trace import Trace

VOID = {"meta", "input", "br", "link", "img"}
HOSTILE = "<script>alert(1)</script>'\"&"


def found(*, plan: bool = False, curve: tuple[float, ...] = (0.5, 1.0), name: str = HOSTILE) -> Findings:
    """Findings about a few chats."""
    chats = MultiTurn(requests=60).trace(1)
    trace = Trace(name=name, turns=chats.turns, block_tokens=chats.block_tokens)
    questions = Questions(
        sources=(FixedTrace(trace),),
        policies=("kv", "round-robin"),
        fleet=FleetOptions(workers=2, rates=EngineRates(cache_tokens=100_000)),
        goal=Goal(),
        seeds=(0, 1),
        rate_scale=1.0,
        curve=curve,
        plan=plan,
        goodput=0.99,
        workers_max=8,
        processes=1,
    )
    with Progress(Console(stderr=True), quiet=True) as progress:
        return find_out(questions, progress)


COMPARED = found()


class Page(HTMLParser):
    """Checks that elements are closed, and collects what could reach out of the file."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reaching: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "poster", "srcset"} or name.startswith("on"):
                self.reaching.append((tag, name))
            if name == "data-values":
                self.values.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    """The parsed report of a comparison."""
    return Page(as_html(COMPARED))


def test_the_file_needs_nothing_else(page: Page) -> None:
    """No address, no import, no font, nothing to fetch."""
    html = as_html(COMPARED)

    assert page.reaching == []
    assert {"link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert re.findall(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|import ", html) == []


def test_every_element_is_closed(page: Page) -> None:
    """A browser repairs what is not; a mail program may not."""
    assert page.open == []
    assert page.tags.count("script") == 1


def test_names_are_text_and_nothing_else(page: Page) -> None:
    """Traces are called as their files are."""
    assert HOSTILE in page.text
    assert "alert(1)</script>" not in as_html(COMPARED)


def test_everything_that_was_asked_for_is_drawn(page: Page) -> None:
    """Distribution, hits and times over time, each worker's load, and two curves over the rate."""
    text = page.text

    for title in ("Who waited how long", "Hits over time", "Time to first token over time", "Load of each worker"):
        assert title in text
    assert "Goodput by rate" in text
    assert page.tags.count("path") == 2 * 5
    assert page.tags.count("rect") == 2 * 2 * 2


def test_what_an_axis_is_called_stands_beside_its_numbers() -> None:
    """The longest of them ends before the name begins, in letters of seven of the picture's units at most."""
    html = as_html(COMPARED)
    names = {float(each) for each in re.findall(r"translate\((\d+) [\d.]+\) rotate\(-90\)", html)}
    numbers = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', html)

    assert len(numbers) >= 10
    assert {round_seconds(0.5), round_seconds(0.1)} == {"500 ms", "100 ms"}
    longest = [*numbers, (numbers[0][0], "500 ms")]
    assert min(float(x) - 7.0 * len(text) for x, text in longest) >= max(names) + 6.0


def test_lines_tell_their_values(page: Page) -> None:
    """What the script shows under the pointer is in the file, inside the picture."""
    assert len(page.values) == 5
    for text in page.values:
        lines = json.loads(text)["lines"]
        assert [line["name"] for line in lines] == ["kv", "round-robin"]
        for line in lines:
            assert all(0 <= x <= 1100 and 0 <= y <= 300 for x, y, _, _ in line["points"])


def test_light_and_dark_have_the_same_colours() -> None:
    """Every variable that is used is defined for both."""
    html = as_html(COMPARED)
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = (set(re.findall(r"(--[a-z0-9]+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])

    assert set(re.findall(r"var\((--[a-z0-9]+)\)", style)) - {"--colour"} <= light
    assert {each for each in light if re.fullmatch(r"--c\d+", each)} <= dark


def test_a_plan_has_its_own_page() -> None:
    """Counts of workers instead of a comparison."""
    planned = found(plan=True, curve=(), name="chats")
    page = Page(as_html(planned))

    assert "How many workers are needed" in page.text
    assert "Load of each worker" not in page.text
    assert "workers needed for 99% of the requests" in as_text(planned)
    assert {row["policy"] for row in as_document(planned)["traces"][0]["plan"]} == {"kv", "round-robin"}


def test_programs_get_everything_as_json() -> None:
    """Numbers only, none of them infinite or no number."""
    text = json.dumps(as_document(COMPARED), allow_nan=False)
    (trace,) = json.loads(text)["traces"]

    assert [row["policy"] for row in trace["policies"]] == ["kv", "round-robin"]
    assert trace["policies"][0]["figures"]["ttft_mean"].keys() == {"mean", "margin"}
    assert [point["scale"] for point in trace["capacity"]["kv"]] == [0.5, 1.0]
    assert trace["requests"] == 60


def test_people_get_a_table() -> None:
    """With what is compared, the best one marked, and how long it took."""
    text = as_text(COMPARED)

    assert "TTFT mean, and goodput, by rate" in text
    assert re.search(r"^kv +[*=] ", text, re.MULTILINE) or re.search(r"^round-robin +\* ", text, re.MULTILINE)
    assert "simulations in" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0 ms"),
        (0.0042, "4.2 ms"),
        (0.085, "85 ms"),
        (1.834, "1.83 s"),
        (27.31, "27.3 s"),
        (120.0, "120 s"),
        (720.0, "12 min"),
    ],
)
def test_times_have_the_unit_that_suits_them(value: float, words: str) -> None:
    """As a person would write them."""
    assert seconds(value) == words


def test_other_numbers_are_short() -> None:
    """Shares, large numbers, round times."""
    assert (percent(0.2043), thousands(1_000_000), thousands(12_035), thousands(7)) == ("20.4%", "1M", "12k", "7")
    assert (round_seconds(2.0), round_seconds(0.05), round_seconds(0.0)) == ("2 s", "50 ms", "0 s")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.037), (0.0, 812.0), (3.0, 3.0), (0.0, 1e-6)])
def test_a_linear_axis_holds_its_values(low: float, high: float) -> None:
    """And has round ticks inside."""
    axis = linear(low, high, 0.0, 100.0)

    assert axis.low <= low
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 12
    assert axis.at(axis.low) == 0.0
    assert axis.at(axis.high) == pytest.approx(100.0)


@pytest.mark.parametrize(("low", "high"), [(0.05, 85.0), (1.0, 1.0), (1e-4, 1e4), (0.011, 0.012)])
def test_a_logarithmic_axis_holds_its_values(low: float, high: float) -> None:
    """From a round number to a round number."""
    axis = logarithmic(low, high, 100.0, 0.0)

    assert axis.low <= low * 1.001
    assert axis.high >= high * 0.999
    assert 1 <= len(axis.ticks) <= 11
    assert axis.at(axis.low) == 100.0
    assert axis.at(axis.high) == pytest.approx(0.0, abs=1e-9)
