"""Settings of real router processes change while they serve: over the API, the store, the file and the command."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvrouter.cli import main
from tests.servers import NatsServer, nats_server
from tests.service.processes import Engine, Process, Processes, Router, eventually

PROMPT = {"prompt": list(range(64)), "max_tokens": 1}
UP = "kvrouter_config_store_up"
REFUSED_FILES = 'kvrouter_config_refused_total{source="file"}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Processes that live as long as the tests of this module."""
    started = Processes(tmp_path_factory.mktemp("shared"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def engine(shared: Processes) -> Engine:
    """One engine for all."""
    return shared.engine()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of the router."""
    path = tmp_path_factory.mktemp("settings") / "kvrouter.toml"
    path.write_text("[routing]\npolicy = 'random'\n[limits]\nattempts_max = 2\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which its changes are kept."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def router(shared: Processes, engine: Engine, file: Path, store: Path) -> Router:
    """A router for all; each test takes back what it has set."""
    return shared.router(
        "--worker",
        engine.spec,
        "--config",
        str(file),
        "--config-store",
        str(store),
        "--routing-decisions-kept",
        "5",
        workers=1,
    )


@pytest.fixture(autouse=True)
def as_started(router: Router) -> Iterator[None]:
    """No test finds what another one has set."""
    yield
    assert httpx.delete(f"{router.url}/config", timeout=60).status_code == 200


def change(router: Router, **values: object) -> httpx.Response:
    """PATCH; `_` stands for the dot after the section."""
    named = {name.replace("_", ".", 1): value for name, value in values.items()}
    return httpx.patch(f"{router.url}/config", json=named, timeout=60)


def value(router: Router, key: str) -> tuple[Any, str]:
    """A setting in force, and where it comes from."""
    shown = router.get("/config")["settings"][key]
    return shown["value"], shown["from"]


def figure(router: Router, name: str) -> float:
    """A sample of `/metrics`, by its whole name."""
    lines = httpx.get(f"{router.url}/metrics", timeout=60).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def changes(process: Process) -> list[tuple[str, object, object]]:
    """The log lines of changes."""
    return [
        (line["setting"], line["before"], line["after"])
        for line in process.lines()
        if line["event"] == "setting_changed"
    ]


def config(router: Router, *arguments: str) -> int:
    """Run `kvrouter config` to its end."""
    return main(["config", *arguments, "--url", router.url])


def test_changes_under_load_lose_no_request(router: Router) -> None:
    """Policies, bounds of the queue, rates and limits go back and forth while clients ask; everybody is answered."""
    steps: list[dict[str, object]] = [
        {"routing_policy": "kv", "queue_rank_requests_max": 1},
        {"routing_policy": "least-loaded", "queue_order": "shortest", "limits_attempts_max": 5},
        {"queue_rank_requests_max": 2, "queue_tenant_weights": ["gold=2"], "limits_client_rate": 1_000_000},
        {"routing_policy": "sticky", "queue_rank_requests_max": None, "limits_client_rate": None},
    ]
    stopped = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=120) as client:
            number = 0
            while not stopped.is_set():
                number += 1
                body = {**PROMPT, "prompt": list(range(number % 8, 64)), "stream": number % 2 == 0}
                statuses.append(client.post(f"{router.url}/v1/completions", json=body).status_code)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for step in [*steps, *steps]:
            answered = len(statuses)
            assert change(router, **step).status_code == 200
            eventually(partial(_longer, statuses, answered + 8))
    finally:
        stopped.set()
        for client in clients:
            client.join()

    assert set(statuses) == {200}
    eventually(lambda: figure(router, "kvrouter_bookings") == 0)
    assert figure(router, "kvrouter_queue_requests") == 0
    assert figure(router, "kvrouter_internal_errors_total") == 0


def test_connections_that_are_kept_have_the_new_limits(router: Router) -> None:
    """What a client may send is decided when it sends it, not when it came."""
    with httpx.Client(base_url=router.url, timeout=60) as client:
        large = {**PROMPT, "prompt": [1] * 2000}
        before = client.post("/v1/completions", json=large)
        change(router, limits_body_bytes_max=2048, server_route_headers=False)
        refused = client.post("/v1/completions", json=large)
        change(router, limits_body_bytes_max=None)
        after = client.post("/v1/completions", json=large)

    assert (before.status_code, refused.status_code, after.status_code) == (200, 413, 200)
    assert "x-kvrouter-worker" in before.headers
    assert "x-kvrouter-worker" not in after.headers


def test_the_answer_names_what_is_wrong_and_nothing_is_applied(router: Router) -> None:
    """One shape for every mistake, as everywhere in the admin API."""
    before = router.get("/config")["settings"]

    refused = change(router, routing_policy="kv", queue_requests_max=0)
    broken = httpx.patch(f"{router.url}/config", content=b"{", timeout=60)

    assert refused.status_code == 400
    assert refused.json()["error"] == {
        "message": "queue.requests_max: 0 is below the least, 1",
        "type": "invalid_request_error",
        "param": "queue.requests_max",
        "code": "invalid_setting",
    }
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    assert router.get("/config")["settings"] == before
    assert figure(router, 'kvrouter_config_refused_total{source="api"}') >= 1


def test_the_command_shows_sets_and_unsets(router: Router, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it over the admin API, and wrong calls end with one line and exit code 2."""
    assert config(router, "set", "routing.policy=least-loaded", "queue.tenant_weights=a=2,b=3") == 0
    done = capsys.readouterr().out
    assert [line.split() for line in done.splitlines()[:2]] == [
        ["routing.policy", "least-loaded", "(was", "random)"],
        ["queue.tenant_weights", "a=2,b=3", "(was", ")"],
    ]
    assert "\napplies to every router that follows the store's key config/kvrouter, revision " in done
    assert config(router, "get", "--changed") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["routing.policy", "least-loaded", "store", "live"]
    assert config(router, "get", "log", "--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"].keys() == {"log.level", "log.format"}
    assert config(router, "set", "log.level=loud") == 2
    assert capsys.readouterr().err == "kvrouter: log.level: 'loud' is not one of debug, info, warning, error\n"
    for wrong in (["set", "log.level"], ["unset"], ["get", "nothing"], ["watch", "--seconds", "0"]):
        assert config(router, *wrong) == 2
    assert config(router, "unset", "--all", "--json") == 0
    assert value(router, "routing.policy") == ("random", "file")


def test_the_command_watches(router: Router) -> None:
    """First what is not as at the start, then a line for each change."""
    change(router, routing_policy="lmetric")
    called = [sys.executable, "-m", "kvrouter", "config", "watch", "--json", "--url", router.url]
    with subprocess.Popen(called, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        change(router, routing_policy="sticky")
        second = json.loads(watching.stdout.readline())
        watching.terminate()

    assert first == {"setting": "routing.policy", "before": "random", "after": "lmetric", "from": "store"}
    assert second == {"setting": "routing.policy", "before": "lmetric", "after": "sticky", "from": "store"}


def test_sighup_takes_from_the_file_what_is_live(router: Router, file: Path) -> None:
    """Flags stay stronger than it; what takes a restart is named; a broken file changes nothing."""
    started = file.read_text()
    assert value(router, "routing.policy") == ("random", "file")
    file.write_text("[routing]\npolicy = 'lmetric'\ndecisions_kept = 9\nprefill_tokens_per_second = 9\n")
    router.signal(signal.SIGHUP)
    waiting = router.event("settings_need_restart")

    assert waiting["settings"] == ["routing.prefill_tokens_per_second"]
    assert value(router, "routing.policy") == ("lmetric", "file")
    assert value(router, "limits.attempts_max") == (3, "default")
    assert value(router, "routing.decisions_kept") == (5, "flag")
    for broken in ("[routing]\npolicy = 'fast'\n[limits]\nattempts_max = 9\n", "[routing]\npolicy ="):
        refused = figure(router, REFUSED_FILES)
        file.write_text(broken)
        router.signal(signal.SIGHUP)
        eventually(partial(_is, router, REFUSED_FILES, refused + 1))
        assert value(router, "limits.attempts_max") == (3, "default")
    change(router, routing_policy="kv")
    file.write_text(started)
    router.signal(signal.SIGHUP)
    eventually(lambda: router.get("/config")["settings"]["routing.policy"]["start"] == "random")
    assert value(router, "routing.policy") == ("kv", "store")
    assert value(router, "limits.attempts_max") == (2, "file")


def test_routers_of_one_store_change_together(
    router: Router, processes: Processes, engine: Engine, store: Path
) -> None:
    """What is kept there goes before flags; at the start before the first request, and later in all of them."""
    change(router, routing_policy="kv")

    other = processes.router("--worker", engine.spec, "--config-store", str(store), "--policy", "random")

    assert other.event("listening")["policy"] == "kv"
    assert value(other, "routing.policy") == ("kv", "store")
    assert change(other, routing_policy="lmetric").status_code == 200
    eventually(lambda: value(router, "routing.policy") == ("lmetric", "store"))
    assert changes(router)[-1] == ("routing.policy", "kv", "lmetric")
    change(router, routing_policy=None)
    eventually(lambda: value(other, "routing.policy") == ("random", "flag"))
    other.signal(signal.SIGTERM)
    assert other.wait() == 0


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


def test_a_store_that_is_restarted(processes: Processes, engine: Engine, nats: NatsServer) -> None:
    """While it is away what is in force stays; then changes go on without anybody's help."""
    options = ("--worker", engine.spec, "--config-store", f"{nats.url}/fleet", "--policy", "random")
    router = processes.router(*options, workers=1)
    assert change(router, routing_policy="lmetric", limits_attempts_max=2).status_code == 200
    assert value(router, "routing.policy") == ("lmetric", "store")

    nats.kill()
    router.event("config_store_down")
    assert figure(router, UP) == 0
    assert value(router, "routing.policy") == ("lmetric", "store")
    assert router.post("/v1/completions", PROMPT).status_code == 200
    assert figure(router, "kvrouter_config_store_failures_total") > 0
    away = change(router, routing_policy="kv")
    assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")

    nats.start()
    eventually(lambda: [line["event"] for line in router.lines()].count("config_store_up") == 2)
    assert figure(router, UP) == 1
    assert value(router, "routing.policy") == ("lmetric", "store")
    eventually(lambda: change(router, routing_policy="kv", limits_attempts_max=None).status_code == 200)
    assert value(router, "routing.policy") == ("kv", "store")
    assert value(router, "limits.attempts_max") == (3, "default")
    assert httpx.delete(f"{router.url}/config", timeout=60).status_code == 200
    assert value(router, "routing.policy") == ("random", "flag")
    assert changes(router)[-1] == ("routing.policy", "kv", "random")


def _is(router: Router, name: str, number: float) -> bool:
    return figure(router, name) == number


def _longer(statuses: list[int], number: int) -> bool:
    return len(statuses) > number
