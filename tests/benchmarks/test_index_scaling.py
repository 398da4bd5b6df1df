"""The curve of the index benchmark: it runs without Dynamo, and what it draws is what it measured."""

import json
import subprocess
import sys
import venv
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.index_depths import DEPTHS, KINDS, deep_changes, deep_queries
from benchmarks.line_chart import Chart, Line, draw
from kvrouter.index import PrefixIndex

SVG = "{http://www.w3.org/2000/svg}"


def test_the_curve_is_measured_and_drawn_without_dynamo(tmp_path: Path) -> None:
    """Every size has its figures, and the reason why there is no peer."""
    no_peers, plot = tmp_path / "no-peers", tmp_path / "curve.svg"
    venv.create(no_peers, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "benchmarks.index_scaling", "--json", "--pairs-max", "30000", "--plot", str(plot)]

    done = subprocess.run(
        [*command, "--peers-python", str(no_peers / "bin" / "python")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for size in (10_000, 30_000):
        assert rows[f"match-512-us-at-{size}"]["ours"] > 0
        assert "ai-dynamo-runtime" in rows[f"bytes-per-pair-at-{size}"]["reason"]
    assert "match-8192-us-at-30000" not in rows
    assert len(ET.parse(plot).findall(f"{SVG}g")) == 3


def test_a_chart_shows_every_point_within_its_frame() -> None:
    """Both axes are logarithmic and cover all values."""
    line = Line(name="a < b", points=((10, 0.5), (1000, 7), (50_000, 300)))

    root = ET.fromstring(draw([Chart(title="Title", unit="us", lines=(line,))], across="things"))

    [path] = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in path.attrib["points"].split()]
    assert len(places) == 3
    assert all(70 <= x <= 620 and 34 <= y <= 190 for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert {"Title, us", "a < b", "things", "10k", "100"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_prompts_of_fixed_depths_are_held_as_their_names_say() -> None:
    """Whole by three ranks, to the half by one, or by nobody."""
    index = PrefixIndex()
    for change in deep_changes(64):
        index.store_chain(change.rank, change.hashes, change.parent)

    names = set()
    for name, packed, _ in deep_queries():
        kind, depth = name.split("-")
        half = int(depth) // 2
        found = sorted(index.match_depths(memoryview(packed).cast("Q").tolist()).values())
        assert found == {"hit": [half, *[int(depth)] * 3], "partial": [half] * 4, "miss": []}[kind]
        names.add(name)
    assert names == {f"{kind}-{depth}" for kind in KINDS for depth in DEPTHS}
