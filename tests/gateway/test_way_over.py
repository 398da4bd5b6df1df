"""From HTTP to NATS without a break: shares of requests, and copies that are compared (A-426 to A-429)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.scene import INFER, GatewayProcess, ScriptedProcess, events_of, gateway, infer
from tests.servers import NatsServer, free_port
from tests.service.processes import Process, eventually

NAME = "ai/llm/infer"
ADMIN = f"/admin/cutover/{NAME}"
TABLE = """\
[[routes]]
path = "/ai/llm/infer"
subject = "svc.ai.llm.v1.infer"
request = "kvrouter.gateway.v1.InferRequest"
response = "kvrouter.gateway.v1.InferResponse"
stream = "kvrouter.gateway.v1.InferChunk"
legacy = "http://127.0.0.1:{port}/base"
repeatable = true

[[routes]]
path = "/state/update"
subject = "svc.state.manager.v1.update"
request = "kvrouter.gateway.v1.UpdateStateRequest"
response = "kvrouter.gateway.v1.UpdateStateResponse"
legacy = "http://127.0.0.1:{port}/base"
"""


class Legacy(Process):
    """The HTTP service from before."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(folder, "legacy", "tests.gateway.legacy_service", str(self.port))
        eventually(self._answers)

    def seen(self, prompt: str) -> list[dict[str, Any]]:
        """The requests with a prompt."""
        told = httpx.get(f"http://127.0.0.1:{self.port}/seen", timeout=60).json()
        return [each for each in told if each["prompt"] == prompt]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/seen", timeout=60).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Legacy]:
    """It runs."""
    running = Legacy(tmp_path_factory.mktemp("legacy"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def folder(legacy: Legacy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The route table and the store of two gateways."""
    path = tmp_path_factory.mktemp("over")
    (path / "routes.toml").write_text(TABLE.format(port=legacy.port), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def over(server: NatsServer, service: ScriptedProcess, folder: Path) -> Iterator[GatewayProcess]:
    """A gateway with both sides."""
    options = ("--routes", str(folder / "routes.toml"), "--store", f"file://{folder}/store")
    with gateway(folder, server, *options, "--shadow-requests-max", "2") as running:
        yield running


def put(to: GatewayProcess, **shares: float) -> dict[str, Any]:
    """Set shares of the route."""
    answer = to.client.put(ADMIN, json=shares)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def side(to: GatewayProcess, user: str = "ann", prompt: str = "hello") -> str:
    """Which side answers a user."""
    return to.post(INFER, infer("echo", prompt), x_user_id=user).headers["x-gateway-side"]


def test_ten_fifty_a_hundred_and_back(over: GatewayProcess) -> None:
    """A-428: shares change while it runs; who is on NATS stays there as the share grows; a roll-back takes all back."""
    users = [f"user-{number}" for number in range(60)]
    moved = []
    for share in (0.0, 0.1, 0.5, 1.0, 0.0):
        put(over, nats=share)
        moved.append({user for user in users if side(over, user) == "nats"})

    none, tenth, half, everybody, again = moved
    assert none == again == set()
    assert tenth < half < everybody == set(users)
    assert 1 <= len(tenth) <= 15
    assert 18 <= len(half) <= 42


def test_a_caller_without_a_name_is_known_by_its_key(over: GatewayProcess) -> None:
    """A-428: sticky by user, else by idempotency key."""
    put(over, nats=0.5)

    def sides(key: str) -> set[str]:
        """Which sides answer three different tenants' requests under one key."""
        asked = (over.post(INFER, infer("echo"), idempotency_key=key, x_tenant_id=tenant) for tenant in "abc")
        return {answer.headers["x-gateway-side"] for answer in asked}

    found = [sides(f"k{number}") for number in range(8)]

    assert all(len(each) == 1 for each in found)
    assert set().union(*found) == {"nats", "legacy"}


def test_every_gateway_follows_one_change(
    over: GatewayProcess, server: NatsServer, service: ScriptedProcess, folder: Path, tmp_path: Path
) -> None:
    """A-428, A-432: shares are in the watched store, and one that starts later finds them there."""
    put(over, nats=1)
    options = ("--routes", str(folder / "routes.toml"), "--store", f"file://{folder}/store")
    with gateway(tmp_path, server, *options) as other:
        at_first = side(other)
        put(over, nats=0)
        eventually(lambda: side(other) == "legacy")
        put(other, nats=1)
        eventually(lambda: side(over) == "nats")

        assert at_first == "nats"
        assert other.metric("gateway_cutover_ratio", route=NAME) == 1
        assert other.client.delete(ADMIN).json() == {"route": NAME, "nats": 0.0, "shadow": 0.0}
        eventually(lambda: side(over) == "legacy")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (ADMIN, {"nats": 1.5}, 400),
        (ADMIN, {"nats": "half"}, 400),
        (ADMIN, {"nots": 1}, 400),
        (ADMIN, {}, 400),
        (ADMIN, [1], 400),
        ("/admin/cutover/absent", {"nats": 1}, 404),
        ("/admin/cutover/state/update", {"shadow": 1}, 400),
    ],
)
def test_shares_that_cannot_be_are_refused(over: GatewayProcess, path: str, body: object, status: int) -> None:
    """And a route whose requests change something is never shadowed unless its other side does nothing."""
    before = over.client.get("/admin/cutover").json()

    answer = over.client.put(path, json=body)

    assert answer.status_code == status
    assert over.client.get("/admin/cutover").json() == before


def test_what_stands_in_the_store_is_checked_too(over: GatewayProcess, folder: Path) -> None:
    """Somebody may write there by other means; what was before holds, and it is counted."""
    import asyncio  # noqa: PLC0415 - only here

    from kvrouter.store import open_key_value_store  # noqa: PLC0415 - as above

    put(over, nats=1)

    async def write() -> None:
        async with open_key_value_store(f"file://{folder}/store") as store:
            await store.bucket("gateway").put(f"cutover/{NAME}", b'{"nats": 7}')

    asyncio.run(write())
    over.eventually_metric("gateway_cutover_refused", 1)

    assert side(over) == "nats"


def test_the_old_side_gets_requests_as_they_came(over: GatewayProcess, legacy: Legacy) -> None:
    """Headers, path and body are the client's; hop-by-hop headers are ours."""
    put(over, nats=0)

    answer = over.post(
        INFER, infer("echo", "as it came"), x_user_id="ann", x_custom_team="red", authorization="Bearer x"
    )

    assert answer.json() == {"output": {"text": "as it came"}, "generation_id": "http"}
    (seen,) = legacy.seen("as it came")
    assert seen["headers"]["x-custom-team"] == "red"
    assert seen["headers"]["authorization"] == "Bearer x"
    assert seen["headers"]["host"] == f"127.0.0.1:{legacy.port}"


def test_errors_of_the_old_side_are_its_own(over: GatewayProcess) -> None:
    """Not translated: its clients know them."""
    put(over, nats=0)

    answer = over.post(INFER, infer("echo", "broken"))

    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (500, {"error": "old form"}, "7")


def test_streams_of_the_old_side_come_as_they_are(over: GatewayProcess) -> None:
    """A-404 on the way over: events pass, and one that breaks off says so."""
    put(over, nats=0)

    whole = over.post(INFER, infer("echo", "three", stream=True))
    broken = over.post(INFER, infer("echo", "breaks off", stream=True))
    refused = over.post(INFER, infer("echo", "broken", stream=True))

    assert whole.headers["content-type"].startswith("text/event-stream")
    assert [data["number"] for _, data in events_of(whole.text)] == [0, 1, 2]
    assert events_of(broken.text)[-1][0] == "error"
    assert refused.status_code == 500


def test_an_old_side_that_is_gone_is_a_503(server: NatsServer, service: ScriptedProcess, tmp_path: Path) -> None:
    """And one that says nothing is a 504: as for NATS."""
    table = tmp_path / "routes.toml"
    table.write_text(TABLE.format(port=free_port()), encoding="utf-8")
    with gateway(tmp_path, server, "--routes", str(table)) as running:
        answer = running.post(INFER, infer("echo"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")


def result(of: GatewayProcess, name: str) -> float:
    """How many copies ended so."""
    return of.metric("gateway_shadow_total", route=NAME, result=name)


@pytest.mark.parametrize("primary", [0, 1])
def test_copies_are_compared_and_differences_are_told_without_contents(
    over: GatewayProcess, legacy: Legacy, primary: int
) -> None:
    """A-427: either side may be the one that answers; equal answers match, others are sampled."""
    put(over, nats=primary, shadow=1)
    matches, diffs = result(over, "match"), result(over, "diff")

    same = over.post(INFER, infer("echo", f"same {primary}")).json()
    over.post(INFER, infer("echo", "differs"))
    over.eventually_metric("gateway_shadow_total", matches + 1, result="match")
    over.eventually_metric("gateway_shadow_total", diffs + 1, result="diff")
    put(over, nats=primary, shadow=0)

    assert same["output"]["text"] == f"same {primary}"
    if primary:
        assert legacy.seen(f"same {primary}")[0]["copy"] == "1"
    sample = over.client.get("/admin/shadow").json()[0]
    assert sample["route"] == NAME
    assert sample["primary"] == ("nats" if primary else "legacy")
    texts = ["text of 7 characters", "text of 9 characters"]
    (difference,) = sample["differences"]
    assert difference["path"] == "output.text"
    assert sorted([difference["primary"], difference["secondary"]]) == texts
    assert "differs" not in json.dumps(sample)


def test_copies_never_stand_in_the_clients_way(over: GatewayProcess, service: ScriptedProcess) -> None:
    """A-427: those that would be too many are dropped and counted; the client has its answer long before."""
    put(over, nats=1, shadow=1)
    dropped, failed = result(over, "dropped"), result(over, "error")

    answers = [over.post(INFER, infer("echo", "stuck")) for _ in range(5)]
    over.eventually_metric("gateway_shadow_total", dropped + 3, result="dropped")
    put(over, nats=1, shadow=0)

    assert [answer.status_code for answer in answers] == [200] * 5
    assert result(over, "error") == failed
