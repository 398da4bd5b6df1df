"""The section about planes behind a router says what the code does: its program runs, its table is a real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from kvrouter.service.planes import request_planes
from kvrouter.service.planes.figures import PlaneFigures
from kvrouter.service.planes.switching import encode_preference, preference_key
from kvrouter.transport.plane_settings import REQUEST_PLANES
from tests.planes.inprocess import MODEL, eventually, routed, run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planes.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Behind a router\n")[2].partition("\n## ")[0]


def test_the_worker_of_the_page_answers_through_a_router(tmp_path: Path) -> None:
    """A-123, A-162: ten lines, and an OpenAI client is answered."""
    [program] = re.findall(r"```python\n([^`]+)```", SECTION)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = program.replace("/tmp/kvrouter", str(tmp_path / "records"))

    async def scenario() -> None:
        async with routed(tmp_path) as router:
            worker = subprocess.Popen([sys.executable, "-c", started], env=environment)
            try:
                await eventually(lambda: any(not each.reasons() for each in router.service.registry))
                assert router.service.views.current().models.keys() == {MODEL}
                async with router.stream("one two") as heard:
                    assert [word async for word in heard] == ["ONE", "TWO"]
            finally:
                worker.kill()
                worker.wait(30)

    run(scenario())


def test_every_figure_of_the_page_is_told(tmp_path: Path) -> None:
    """A-236, B.16: names, kinds and labels."""
    told = re.findall(r"^\| `((?:request_plane|discovery)_\w+)` \| (\w+) \| (.*?) \|", SECTION, re.MULTILINE)
    registry = CollectorRegistry()
    figures = PlaneFigures(registry)
    figures.discovery.took("watch", 0.1)
    described = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, labels)
        for family in registry.collect()
        if family.name.startswith(("request_plane_", "discovery_"))
        for labels in {tuple(sorted(sample.labels.keys() - {"le"})) for sample in family.samples}
    }

    assert {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in told} == described


def test_the_key_that_switches_is_the_one_on_the_page() -> None:
    """A-303: what an operator writes by hand is what is read."""
    assert preference_key(("NAMESPACE", "COMPONENT", "ENDPOINT")) in SECTION
    assert f"`{encode_preference('http').decode()}`" in SECTION
    assert ", ".join(f"`{plane}`" for plane in REQUEST_PLANES) in SECTION.replace("\n", " ")


def test_answers_that_call_home_are_given_up_when_the_page_says() -> None:
    """B.6: not with the record, which a worker that drains takes away first."""
    [row] = re.findall(r"^\| call-home \| none: .*$", PAGE, re.MULTILINE)

    assert f"{request_planes._GONE_SECONDS:g} s after its record has gone" in row
