"""The admin API through a real router: registering, changing, draining and removing workers."""

from typing import Any

import httpx
import pytest

from kvrouter.errors import RequestError
from kvrouter.service.worker_spec import worker_spec_from_fields
from tests.service.processes import Engine, Processes, Router, eventually


@pytest.fixture
def engine(processes: Processes) -> Engine:
    """One engine that no router knows yet."""
    return processes.engine("--adapter", "lora")


@pytest.fixture
def router(processes: Processes) -> Router:
    """A router without workers."""
    return processes.router()


def _register(router: Router, **fields: Any) -> Any:
    answer = router.post("/workers", fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_registered_worker_is_schedulable_in_the_answer(router: Router, engine: Engine) -> None:
    """Its first health check is made before the answer, so a script needs no loop."""
    record = _register(router, url=engine.url, worker_id="w", events=engine.ready["events"])

    assert (record["worker_id"], record["lifecycle"], record["not_schedulable_reasons"]) == ("w", "schedulable", [])
    assert record["models"] == ["simulated", "lora"]
    assert record["kv_events_endpoints"] == {"0": engine.ready["events"]}
    assert router.get("/workers/w")["health"]["state"] == "ready"
    assert [each["worker_id"] for each in router.get("/workers?model_name=lora")] == ["w"]
    assert router.get("/workers?model_name=none") == []
    assert router.get("/workers?routing_group=other") == []


def test_a_worker_that_is_not_there_is_shown_with_its_reason(router: Router) -> None:
    """Registered, visible, not chosen."""
    record = _register(router, url="http://127.0.0.1:9")

    assert record["lifecycle"] == "incomplete"
    assert "refused" in record["not_schedulable_reasons"][-1]


def test_numbers_as_ids_stay_numbers(router: Router) -> None:
    """Clients of Dynamo compare them."""
    _register(router, worker_id=2**63 + 1, endpoint="http://w:1", model_name="m", block_size=16)

    record = router.get(f"/workers/{2**63 + 1}")

    assert (record["worker_id"], record["model_name"], record["lifecycle"]) == (2**63 + 1, "m", "schedulable")


def test_drain_and_resume_by_route_and_by_state(router: Router, engine: Engine) -> None:
    """Two ways to say the same."""
    _register(router, url=engine.url, worker_id="w")

    states = [
        router.post("/workers/w/drain", {}).json()["lifecycle"],
        router.post("/workers/w/resume", {}).json()["lifecycle"],
        httpx.patch(f"{router.url}/workers/w", json={"state": "draining"}).json()["lifecycle"],
        httpx.patch(f"{router.url}/workers/w", json={"topic": ""}).json()["lifecycle"],
        httpx.patch(f"{router.url}/workers/w", json={"state": "active"}).json()["lifecycle"],
    ]

    assert states == ["draining", "schedulable", "draining", "draining", "schedulable"]


def test_a_draining_worker_finishes_what_it_has(router: Router, engine: Engine) -> None:
    """The stream goes on, the next request is refused, and after its end the worker is idle."""
    _register(router, url=engine.url, worker_id="w")
    body = {"prompt": [1, 2, 3], "max_tokens": 40, "ignore_eos": True, "stream": True}

    with httpx.stream("POST", f"{router.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        active = router.post("/workers/w/drain", {}).json()["requests"]["active"]
        refused = router.post("/v1/completions", {"prompt": [1], "max_tokens": 1})
        rest = [line for line in lines if line]

    assert active == 1
    assert refused.status_code == 503
    assert rest[-1] == "data: [DONE]"
    eventually(lambda: router.get("/workers/w")["requests"]["active"] == 0)


def test_a_patch_changes_what_it_names(router: Router, engine: Engine) -> None:
    """The rest stays, and a mistake changes nothing."""
    _register(router, url=engine.url, worker_id="w")

    changed = httpx.patch(f"{router.url}/workers/w", json={"model_name": "alias", "total_kv_blocks": 7})
    wrong = httpx.patch(f"{router.url}/workers/w", json={"block_size": 0})
    renamed = httpx.patch(f"{router.url}/workers/w", json={"worker_id": "x"})

    assert (changed.json()["models"], changed.json()["total_kv_blocks"]) == (["alias"], 7)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "block_size")
    assert renamed.json()["error"]["param"] == "worker_id"
    assert router.get("/workers/w")["models"] == ["alias"]


def test_a_removed_worker_is_gone(router: Router, engine: Engine) -> None:
    """With its sources and its models; a second removal is 404."""
    _register(router, url=engine.url, worker_id="w", events=engine.ready["events"])

    removed = httpx.delete(f"{router.url}/workers/w")
    again = httpx.delete(f"{router.url}/workers/w")

    assert (removed.status_code, removed.json()["worker_id"]) == (200, "w")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "worker_not_found")
    assert router.get("/workers") == router.get("/sources") == router.get("/v1/models")["data"] == []


def test_the_described_fields_of_a_worker_are_taken(router: Router) -> None:
    """A description that names a field we refuse would be worse than none."""
    schema = router.get("/openapi.json")["paths"]["/workers"]["post"]["requestBody"]["content"]["application/json"]
    described = schema["schema"]["properties"]

    for name in described.keys() - {"state"}:
        assert "unknown" not in _refusal_of(name)
    assert "unknown" in _refusal_of("state")
    assert router.post("/workers", schema["example"]).status_code == 201


def _refusal_of(name: str) -> str:
    """What is said of a value that no field takes."""
    try:
        worker_spec_from_fields({name: object()})
    except RequestError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/workers", "GET, POST"), ("/metrics", "GET, HEAD"), ("/select", "POST"), ("/v1/completions", "POST")],
)
def test_a_wrong_method_is_told_the_right_ones(router: Router, path: str, allow: str) -> None:
    """In words, and in the header that RFC 9110 asks for."""
    answer = httpx.put(router.url + path, content=b"{}")

    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert answer.json()["error"]["message"] == f"{path} takes {allow.replace(', ', ' and ')}"


@pytest.mark.parametrize("path", ["/workers", "/select", "/v1/completions"])
def test_an_empty_body_is_called_empty(router: Router, path: str) -> None:
    """Not truncated JSON: whoever forgot it sees at once."""
    answer = httpx.post(router.url + path)

    assert answer.status_code == 400
    assert "is empty; it must be a JSON object" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/workers", b"{", 400, None),
        ("POST", "/workers", b"[1]", 400, None),
        ("POST", "/workers", b"", 400, None),
        ("POST", "/workers", b'{"url": "http://h:1", "model": "\\ud800"}', 400, None),
        ("POST", "/workers", b'{"url": "http://h:1", "model": "\xff"}', 400, None),
        ("POST", "/workers", b"[" * 100_000, 400, None),
        ("POST", "/workers", b'{"url": "http://h:1", "data_parallel_size": 1000}', 400, "data_parallel_size"),
        ("PATCH", "/workers/none", b'{"topic": "x"}', 404, "worker_id"),
        ("POST", "/workers/none/drain", b"", 404, "worker_id"),
        ("GET", "/decisions?limit=0", b"", 400, "limit"),
        ("GET", "/decisions?limit=x", b"", 400, "limit"),
        ("GET", "/nowhere", b"", 404, None),
        ("PUT", "/workers", b"{}", 405, None),
    ],
)
def test_every_mistake_has_the_one_error_shape(
    router: Router, method: str, path: str, body: bytes, status: int, param: str | None
) -> None:
    """JSON with message, type, param and code, whatever part of us found it."""
    answer = httpx.request(method, router.url + path, content=body)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param
    assert "x-kvrouter-worker" not in answer.headers


def test_the_api_describes_itself(router: Router) -> None:
    """For whoever writes a client."""
    paths = router.get("/openapi.json")["paths"]

    assert {"/workers", "/workers/{worker_id}", "/sources", "/decisions/{request_id}"} <= set(paths)
    assert set(paths["/workers"]["post"]["responses"]) == {"201", "default"}
    assert httpx.get(f"{router.url}/docs").status_code == 200


def test_keys_of_workers_are_never_told(router: Router, engine: Engine) -> None:
    """Neither in records nor in errors nor in the log."""
    answer = router.post("/workers", {"url": engine.url, "worker_id": "w", "api_key": "very-secret"})
    wrong = router.post("/workers", {"url": "http://h:1", "worker_id": "x", "api_key": "very secret"})

    assert "secret" not in answer.text + wrong.text + str(router.get("/workers")) + router.output.read_text()


@pytest.mark.parametrize("events", ["redis://127.0.0.1:6379/0/a{b}", "redis://127.0.0.1:6379/0/a%7Bb"])
def test_an_event_address_that_only_its_transport_refuses_is_the_clients_fault(
    processes: Processes, events: str
) -> None:
    """It gets the reason, and the worker stays as it was."""
    router = processes.router("--worker", "http://127.0.0.1:9,id=w,events=tcp://127.0.0.1:9")

    refused = httpx.patch(f"{router.url}/workers/w", json={"events": events}, timeout=60)

    assert refused.status_code == 422
    assert "braces" in refused.json()["error"]["message"]
    assert router.get("/sources")[0]["endpoint"] == "tcp://127.0.0.1:9"
