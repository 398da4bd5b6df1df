"""compose.yaml says what the programs understand, and what it starts works together. No container runs here."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kvrouter.cli import _parser as command_line
from kvrouter.replay.engine.options import parse_options
from kvrouter.service.worker_spec import parse_worker_spec
from tests.servers import etcd_server, free_port, nats_server, redis_server
from tests.service.processes import Process, eventually

ROOT = Path(__file__).parents[2]
PROFILES = {"zmq", "nats", "gateway"}
KEY = "secret"
# The keys that a service has here, of those that the specification of Compose knows.
MEMBERS = {
    "build", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "networks", "ports",
    "profiles", "restart", "secrets", "stop_grace_period", "volumes",
}  # fmt: skip
ENGINE = ["python", "-m", "kvrouter.replay.engine"]
_PUBLISHED = {"router": 8080, "router-nats": 8080, "gateway": 8000}


def document() -> Any:
    """Read the file."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def services() -> dict[str, Any]:
    """Read the services of the file."""
    found: dict[str, Any] = document()["services"]
    return found


def of_profile(profile: str) -> dict[str, Any]:
    """The services that run with a profile."""
    return {name: service for name, service in services().items() if profile in service["profiles"]}


def ours() -> dict[str, Any]:
    """The services that are our own image."""
    return {name: service for name, service in services().items() if "build" in service}


def test_every_service_is_one_that_compose_understands() -> None:
    """Known members, an image or a file to build one from, and profiles that are named at the head."""
    for name, service in services().items():
        assert set(service) <= MEMBERS, name
        assert set(service["profiles"]) <= PROFILES, name
        assert "image" in service, name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert "COMPOSE_PROFILES=zmq" in (ROOT / ".env").read_text(encoding="utf-8")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_profile_has_what_it_needs(profile: str) -> None:
    """Whoever is waited for or named in a command or a variable runs too; no port is published twice."""
    running = of_profile(profile)
    names = "|".join(services())
    ports = [port for service in running.values() for port in service.get("ports", ())]

    assert len(ports) == len(set(ports))
    for service in running.values():
        assert set(service.get("depends_on", ())) <= set(running)
        said = json.dumps([service.get("command"), service.get("environment")])
        assert set(re.findall(rf"//({names}):\d", said)) <= set(running)


def test_engines_b_and_c_are_as_a() -> None:
    """What each has beside it differs by the letter alone, so trying the first is trying all."""
    for part in ("engine", "relay", "worker"):
        first = json.dumps(services()[f"{part}-a"], sort_keys=True)
        for letter in ("b", "c"):
            as_first = first.replace("engine-a", f"engine-{letter}").replace("id=a", f"id={letter}")
            as_first = as_first.replace('"a"', f'"{letter}"')
            assert json.dumps(services()[f"{part}-{letter}"], sort_keys=True) == as_first


def test_files_that_are_mounted_are_there() -> None:
    """Paths of this repository; the others are volumes that the file declares."""
    for service in services().values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in document()["volumes"]
        assert set(service.get("secrets", ())) <= set(document()["secrets"])


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


@pytest.mark.parametrize("name", [name for name, service in ours().items() if "entrypoint" not in service])
def test_a_command_line_is_one_that_the_program_takes(name: str) -> None:
    """A-418: every command of `kvrouter` in the file."""
    parser, _ = command_line()

    parsed, unknown = parser.parse_known_args(services()[name]["command"])

    assert unknown == []
    assert parsed.command == services()[name]["command"][0]


def test_prometheus_scrapes_what_runs_and_dashboards_show_what_is_told() -> None:
    """Targets are services and their ports; every metric of a dashboard is on a page."""
    scraped = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {target for job in scraped for each in job["static_configs"] for target in each["targets"]}
    pages = "".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in ("operations", "gateway"))
    known = set(re.findall(r"^\| `((?:kvrouter|gateway)_[a-z_]+)`", pages, re.MULTILINE))

    assert targets == {"router:8080", "gateway:8000", "engine-a:8000", "engine-b:8000", "engine-c:8000"}
    for file in sorted((ROOT / "deploy/grafana/dashboards").iterdir()):
        board = json.loads(file.read_text(encoding="utf-8"))
        queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        named = {name for query in queries for name in re.findall(r"(?:kvrouter|gateway)_[a-z_]+", query)}
        assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= known
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


class Composed:
    """Services of a profile as processes of this machine: each address of the file becomes one here."""

    def __init__(self, folder: Path, stack: ExitStack, known: dict[str, int]) -> None:
        """`known` are addresses that are served already, as `host:port`, and their ports here."""
        self._folder, self._stack, self._ports = folder, stack, dict(known)

    def start(self, name: str) -> Process:
        """Start a service as the file has it."""
        service = services()[name]
        program = service.get("entrypoint", ["python", "-m", "kvrouter"])
        command = [self._here(part) for part in service["command"]]
        if program == ENGINE:
            command = self._own_ports(name, service["command"])
        environment = {key: self._here(str(value)) for key, value in service.get("environment", {}).items()}
        environment["KVROUTER_API_KEYS"] = KEY
        if name in _PUBLISHED:
            command += ["--port", str(self.port(name, _PUBLISHED[name]))]
        module = program[2:] if program[1] == "-m" else ["examples.gateway.service"]
        process = Process(self._folder, name, *module, *command, environment=environment)
        self._stack.callback(process.stop)
        return process

    def port(self, host: str, port: int) -> int:
        """Where an address of the file is here."""
        address = f"{host}:{port}"
        if address not in self._ports:
            self._ports[address] = free_port()
        return self._ports[address]

    def _here(self, text: str) -> str:
        text = text.replace("0.0.0.0", "127.0.0.1")
        hosts = "|".join(services())
        return re.sub(rf"\b({hosts}):(\d+)", lambda found: f"127.0.0.1:{self.port(found[1], int(found[2]))}", text)

    def _own_ports(self, name: str, command: list[str]) -> list[str]:
        return [str(self.port(name, int(part))) if part.isdigit() else self._here(part) for part in command]


def ask(port: int) -> httpx.Response:
    """A request to a router."""
    body = {"model": "simulated", "prompt": list(range(64)), "max_tokens": 2}
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, headers=headers, timeout=60)


def schedulable(port: int) -> bool:
    """Whether a router has a worker."""
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).json()["schedulable_workers"])
    except httpx.TransportError:
        return False


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is stopped at the end."""
    with ExitStack() as opened:
        yield opened


def test_the_profiles_zmq_and_nats_route_requests(tmp_path: Path, stack: ExitStack) -> None:
    """Both fleets as processes, with the first engine and what each profile adds to it; requests find their way."""
    nats = stack.enter_context(nats_server(_folder(tmp_path, "nats")))
    redis = stack.enter_context(redis_server(_folder(tmp_path, "redis")))
    etcd = stack.enter_context(etcd_server(_folder(tmp_path, "etcd")))
    composed = Composed(tmp_path, stack, {"nats:4222": nats.port, "redis:6379": redis.port, "etcd:2379": etcd.port})
    for name in of_profile("zmq").keys() | of_profile("nats").keys():
        if "build" in services()[name] and not name.endswith(("-b", "-c")):
            composed.start(name)

    for router in ("router", "router-nats"):
        port = composed.port(router, 8080)
        eventually(lambda port=port: schedulable(port))  # type: ignore[misc]
        assert ask(port).status_code == 200


def test_the_profile_gateway_answers(tmp_path: Path, stack: ExitStack) -> None:
    """A-418: NATS, the service of the example and the gateway, as the file starts them."""
    nats = stack.enter_context(nats_server(_folder(tmp_path, "nats")))
    composed = Composed(tmp_path, stack, {"nats:4222": nats.port})
    for name in of_profile("gateway"):
        if "build" in services()[name]:
            composed.start(name)
    url = f"http://127.0.0.1:{composed.port('gateway', 8000)}/ai/models"

    def answered() -> bool:
        try:
            return httpx.post(url, json={}, headers={"authorization": f"Bearer {KEY}"}, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    assert eventually(answered)
    assert httpx.post(url, json={}, timeout=60).status_code == 401


def _folder(within: Path, name: str) -> Path:
    path = within / name
    path.mkdir()
    return path
