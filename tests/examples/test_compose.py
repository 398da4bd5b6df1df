"""compose.yaml only says what the programs understand. No container runs here."""

from pathlib import Path
from typing import Any

import yaml

from kvrouter.replay.engine.options import parse_options
from kvrouter.service.worker_spec import parse_worker_spec

ROOT = Path(__file__).parents[2]


def services() -> Any:
    """Read the services of the file."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_the_router_knows_the_engines_by_their_addresses() -> None:
    """Each worker names a service and the ports that this service is told to use."""
    found = services()

    for text in found["router"]["environment"]["KVROUTER_WORKERS"].split():
        spec = parse_worker_spec(text)
        engine = found[f"engine-{spec.worker_id}"]
        options = parse_options(engine["command"])
        assert spec.address == f"http://engine-{spec.worker_id}:{options.port}"
        assert f":{options.events_port}," in text
        assert text.endswith(f":{options.replay_port}")


def test_the_image_is_built_from_the_file_that_is_named() -> None:
    """Every service that is built names a Dockerfile of this repository."""
    for service in services().values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
