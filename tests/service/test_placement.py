"""Labels, taints, zones, pins and conversations, as clients and gateways ask for them; without sockets."""

import asyncio
from typing import Any

import pytest

from kvrouter.errors import NoWorkerError, RequestError, SettingsError, UnmetConstraintError
from kvrouter.service.proxy import Route
from kvrouter.service.worker_spec import parse_worker_spec
from kvrouter.settings import PlacementSettings
from tests.service.inprocess import InProcess

BODY = {"model": "m", "prompt": list(range(64)), "max_tokens": 4}


def _fleet(placement: PlacementSettings | None = None, /, **workers: dict[str, Any]) -> InProcess:
    service = InProcess(placement=placement or PlacementSettings())
    for name, fields in workers.items():
        service.add(url=f"http://{name}:1", worker_id=name, model="m", block_size=16, **fields)
    return service


GPUS: dict[str, dict[str, Any]] = {
    "a": {"labels": {"gpu": "h100"}, "zone": "east"},
    "b": {"labels": ["gpu=a100"], "zone": "west", "taints": ["dedicated=batch:NoSchedule"]},
    "c": {"taints": ["old:PreferNoSchedule", "nvlink"], "ranks": 2},
}


def _way(service: InProcess, /, *, path: str = "/v1/completions", body: Any = None, **headers: str) -> Route:
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    found = service.service.dispatcher.route(service.request("POST", path, body or BODY, lines), ())
    if not isinstance(found, Route):

        async def wait() -> Any:
            return await found  # type: ignore[misc]

        found = asyncio.run(wait())
    assert isinstance(found, Route)
    return found


def _ask(service: InProcess, /, **headers: str) -> str:
    """Send a request of its own prompt and let it end; tell who got it."""
    first = 100 * service.service.decisions.recorded
    route = _way(service, body={**BODY, "prompt": list(range(first, first + 64))}, **headers)
    service.service.dispatcher.finished(route, "ok", None)
    return route.worker_id


@pytest.mark.parametrize(
    ("headers", "workers"),
    [
        ({}, {"a"}),
        ({"x_kvrouter_require": "gpu"}, {"a"}),
        ({"x_kvrouter_require": "gpu=a100|h200", "x_kvrouter_tolerate": "dedicated=batch"}, {"b"}),
        ({"x_kvrouter_require": "!gpu"}, {"c"}),
        ({"x_kvrouter_require": "gpu != h100", "x_kvrouter_tolerate": "old"}, {"c"}),
        ({"x_kvrouter_tolerate": "*"}, {"a", "b", "c"}),
        ({"x_kvrouter_require": "zone=west", "x_kvrouter_tolerate": "dedicated"}, {"b"}),
        ({"x_kvrouter_zone": "west", "x_kvrouter_tolerate": "dedicated"}, {"b"}),
        ({"x_kvrouter_zone": "nowhere"}, {"a"}),
        ({"x_kvrouter_worker": "c"}, {"c"}),
        ({"x_kvrouter_worker": "b/0"}, {"b"}),
        ({"x_worker_instance_id": "c", "x_dp_rank": "1"}, {"c"}),
    ],
)
def test_requests_go_where_their_headers_say(headers: dict[str, str], workers: set[str]) -> None:
    """A few requests in turn, on idle workers."""
    service = _fleet(None, **GPUS)

    assert {_ask(service, **headers) for _ in range(8)} == workers


def test_a_pin_may_name_the_rank() -> None:
    """Which the engine is told."""
    service = _fleet(None, **GPUS)

    for rank in (1, 0, 1):
        route = _way(service, x_kvrouter_worker=f"c/{rank}")
        assert route.extra_headers == b"X-data-parallel-rank: %d\r\n" % rank


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x_kvrouter_require": "gpu=b200"}, "no worker has label gpu=b200; there is gpu = a100, h100"),
        ({"x_kvrouter_require": "gpu,!gpu"}, "label gpu, which is forbidden"),
        ({"x_kvrouter_worker": "d"}, "worker 'd', to which this is pinned, is not available; there is: a, b, c"),
        ({"x_kvrouter_worker": "c/7"}, "rank 7 of worker 'c'"),
    ],
)
def test_what_nobody_is_is_told(headers: dict[str, str], said: str) -> None:
    """With what there is instead."""
    with pytest.raises(UnmetConstraintError, match=said):
        _ask(_fleet(None, **GPUS), **headers)


def test_what_is_not_there_now_is_another_error() -> None:
    """The client may come again."""
    service = _fleet(None, **GPUS)
    service.service.registry.set_draining("a", draining=True, now=service.clock.now)

    with pytest.raises(NoWorkerError, match="not routable: a") as raised:
        _ask(service, x_kvrouter_require="gpu=h100")
    assert not isinstance(raised.value, UnmetConstraintError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-kvrouter-require", "gpu=="),
        ("x-kvrouter-require", ""),
        ("x-kvrouter-require", "!gpu=h100"),
        ("x-kvrouter-require", "gpu>1"),
        ("x-kvrouter-require", ",".join("abcdefghijklmnopq")),
        ("x-kvrouter-require", "g" * 2000),
        ("x-kvrouter-tolerate", "a b"),
        ("x-kvrouter-zone", "-"),
        ("x-kvrouter-worker", "a/b"),
        ("x-kvrouter-worker", "a/12345"),
        ("x-worker-instance-id", "a b"),
        ("x-dp-rank", "1"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(name: str, value: str) -> None:
    """It is never taken for none."""
    with pytest.raises(RequestError) as raised:
        _ask(_fleet(None, **GPUS), **{name.replace("-", "_"): value})

    assert (raised.value.status, raised.value.param) == (400, name)


def test_headers_that_are_repeated_count_together() -> None:
    """As lists in HTTP do."""
    service = _fleet(None, **GPUS)
    request = service.request("POST", "/v1/completions", BODY)
    request.asked = ((b"x-kvrouter-require", b"gpu"), (b"x-kvrouter-require", b"zone=nowhere"))

    with pytest.raises(UnmetConstraintError, match="zone=nowhere"):
        service.service.dispatcher.route(request, ())


def test_paths_that_are_only_passed_on_are_constrained_too() -> None:
    """A pin must hold for everything that a worker is asked."""
    service = _fleet(None, **GPUS)

    assert _way(service, path="/v1/audio/speech", x_kvrouter_worker="b").worker_id == "b"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"labels": "gpu=h100"}, "labels"),
        ({"labels": ["gpu"]}, "labels"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"labels": {"a": "ü"}}, "labels"),
        ({"labels": [f"k{number}=v" for number in range(65)]}, "labels"),
        ({"taints": ["a b:NoSchedule"]}, "taints"),
        ({"taints": ["a:NoExecute"]}, "taints"),
        ({"taints": [1]}, "taints"),
        ({"zone": "a b"}, "zone"),
        ({"role": "both", "engine": "sglang"}, "role"),
        ({"role": "encode"}, "role"),
        ({"engine": "trtllm"}, "engine"),
        ({"bootstrap_port": 0}, "bootstrap_port"),
        ({"topology_domains": ["a"]}, "topology_domains"),
    ],
)
def test_a_record_that_cannot_be_is_refused(fields: dict[str, Any], param: str) -> None:
    """The field is named."""
    with pytest.raises(RequestError) as raised:
        _fleet(None, a=fields)

    assert (raised.value.status, raised.value.param) == (400, param)


def test_the_command_line_says_the_same() -> None:
    """Lists have a plus between their members."""
    spec = parse_worker_spec(
        "http://h:1,labels=gpu=h100+tier=gold,taints=a=b:NoSchedule+c:PreferNoSchedule+d,zone=z,role=prefill,"
        "engine=sglang,bootstrap_port=9000"
    )

    traits = spec.traits
    assert dict(traits.labels) == {"zone": "z", "engine": "sglang", "role": "prefill", "gpu": "h100", "tier": "gold"}
    assert [str(taint) for taint in traits.taints] == ["a=b:NoSchedule", "c:PreferNoSchedule"]
    assert traits.names == {"d", "gpu=h100", "tier=gold"}
    assert (traits.zone, traits.role, traits.whole) == ("z", "prefill", False)
    assert (spec.engine, spec.bootstrap_port) == ("sglang", 9000)
    with pytest.raises(SettingsError, match="labels"):
        parse_worker_spec("http://h:1,labels=gpu")


def test_a_worker_is_relabelled_without_leaving() -> None:
    """Its blocks and load stay; the next request sees the change."""
    service = _fleet(None, **GPUS)
    route = _way(service, x_kvrouter_require="gpu=h100")

    service.add(healthy=False, url="http://a:1", worker_id="a", model="m", block_size=16, labels={"gpu": "h200"})

    assert service.service.registry.find("a").active == 1
    assert _ask(service, x_kvrouter_require="gpu=h200") == "a"
    service.service.dispatcher.finished(route, "ok", None)


def test_the_routers_own_zone_is_preferred_by_who_names_none() -> None:
    """And left when it is busier than its price."""
    service = _fleet(PlacementSettings(zone="east", zone_seconds=0.2), a={"zone": "east"}, b={"zone": "west"})

    assert {_ask(service) for _ in range(6)} == {"a"}
    assert {_ask(service, x_kvrouter_zone="west") for _ in range(6)} == {"b"}
    busy = [_way(service, body={**BODY, "prompt": list(range(at, at + 900))}) for at in range(0, 9000, 900)]
    assert {route.worker_id for route in busy} == {"a", "b"}


# -- selection ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "a"),
        ({"require": "gpu=a100", "tolerate": "*"}, "b"),
        ({"routing_constraints": {"required_taints": ["gpu=a100"]}, "tolerate": "dedicated"}, "b"),
        ({"routing_constraints": {"required_taints": ["nvlink"]}}, "c"),
        ({"routing_constraints": {"preferred_taints": {"gpu=a100": 5.0}}, "tolerate": "*"}, "b"),
        ({"routing_constraints": {"preferred_taints": {"gpu=h100": -5.0}}}, "c"),
        ({"zone": "west", "tolerate": "*"}, "b"),
        ({"pinned_worker": {"worker_id": "b"}}, "b"),
    ],
)
def test_selections_ask_by_fields(fields: dict[str, Any], expected: str) -> None:
    """Dynamo's, and ours as the headers have them."""
    service = _fleet(None, **GPUS)

    status, answer = service.call("POST", "/select", {"token_ids": list(range(64)), "model_name": "m", **fields})

    assert (status, answer["worker_id"]) == (200, expected)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"require": "gpu=b200"}, 503, None),
        ({"role": "prefill"}, 503, None),
        ({"require": ">"}, 400, "require"),
        ({"role": "both"}, 400, "role"),
        ({"zone": "a b"}, 400, "zone"),
        ({"routing_constraints": {"preferred_taints": {str(each): 1.0 for each in range(17)}}}, 400, None),
    ],
)
def test_selections_that_nobody_fits_are_answered_as_dynamos_clients_know_it(
    fields: dict[str, Any], status: int, param: str | None
) -> None:
    """503 where nobody fits; 400 where a field cannot be read."""
    found, answer = _fleet(None, **GPUS).call("POST", "/select", {"token_ids": [1] * 64, "model_name": "m", **fields})

    assert found == status
    assert param is None or answer["error"]["param"] == param


# -- conversations -----------------------------------------------------------------------------------------------------

ALIKE: dict[str, dict[str, Any]] = {name: {} for name in "abcd"}
PIN = PlacementSettings(sessions="pin", session_idle_seconds=60.0)


@pytest.mark.parametrize("name", ["x_kvrouter_session", "x_session_id", "x_dynamo_session_id"])
def test_a_conversation_stays_where_it_is(name: str) -> None:
    """By any of the headers; another one goes elsewhere, as load says."""
    service = _fleet(PIN, **ALIKE)

    first = [_ask(service, **{name: "s"}) for _ in range(4)]
    others = {_ask(service, **{name: f"t{number}"}) for number in range(12)}

    assert len(set(first)) == 1
    assert others == set("abcd")
    table = service.service.sessions
    assert table is not None
    assert (table.counts.opened, table.counts.kept, len(table)) == (13, 3, 13)


def test_a_conversation_may_be_named_in_the_body() -> None:
    """By the fields that OpenAI's clients have for it."""
    service = _fleet(PIN, **ALIKE)

    found = {_way(service, body={**BODY, "prompt_cache_key": "k"}).worker_id for _ in range(6)}

    assert len(found) == 1


@pytest.mark.parametrize("how", ["drain", "remove", "eject"])
def test_a_conversation_moves_when_its_worker_takes_no_more(how: str) -> None:
    """And stays where it has moved to when the worker is back."""
    service = _fleet(PIN, **ALIKE)
    registry, now = service.service.registry, service.clock.now
    home = _ask(service, x_session_id="s")
    if how == "drain":
        registry.set_draining(home, draining=True, now=now)
    elif how == "remove":
        registry.remove(home, now=now)
    else:
        registry.connect_failed(registry.find(home), now=now)

    away = _ask(service, x_session_id="s")

    assert away != home
    if how == "drain":
        registry.set_draining(home, draining=False, now=now)
    assert _ask(service, x_session_id="s") == away
    assert service.service.sessions is not None
    counts = service.service.sessions.counts
    assert (counts.moved, counts.orphaned) == ((0, 1) if how == "remove" else (1, 0))


def test_a_conversation_that_is_preferred_gives_way_to_load() -> None:
    """By the price that the settings say."""
    service = _fleet(PlacementSettings(sessions="prefer", session_seconds=0.2), **ALIKE)
    long = {**BODY, "prompt": list(range(8000))}
    home = _way(service, body=long, x_session_id="s").worker_id

    assert _way(service, body={**BODY, "prompt": [7] * 64}, x_session_id="s").worker_id != home


def test_a_conversation_ends_when_it_is_said_or_idle() -> None:
    """By a header with its last request, by the gateway, or by time."""
    service = _fleet(PIN, **ALIKE)
    table = service.service.sessions
    assert table is not None

    _ask(service, x_session_id="s")
    _ask(service, x_session_id="s", x_kvrouter_session_end="true")
    assert (len(table), table.counts.closed) == (0, 1)

    fields = {"token_ids": [1] * 64, "model_name": "m"}
    service.call("POST", "/select", {**fields, "session_id": "g"})
    assert len(table) == 1
    service.call("POST", "/select", {**fields, "session_context": {"session_id": "g", "session_final": True}})
    assert (len(table), table.counts.closed) == (0, 2)

    _ask(service, x_session_id="s")
    service.clock.now += 61.0
    _ask(service, x_session_id="t")
    assert (len(table), table.counts.expired) == (1, 1)


def test_an_advisory_selection_binds_nothing() -> None:
    """It is only a question."""
    service = _fleet(PIN, **ALIKE)

    service.call("POST", "/select", {"token_ids": [1] * 64, "model_name": "m", "session_id": "g", "advisory": True})

    assert service.service.sessions is not None
    assert len(service.service.sessions) == 0


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_an_engine_that_says_what_it_is_need_not_be_described() -> None:
    """SGLang owns its models by name; what was registered goes first."""
    service = _fleet(None, s={"ranks": 2}, v={"ranks": 2, "engine": "vllm"})
    registry = service.service.registry
    for name in "sv":
        registry.models_found(registry.find(name), [{"id": "m", "owned_by": "sglang"}], now=service.clock.now)

    sglang, vllm = (_way(service, x_kvrouter_worker=f"{name}/1") for name in "sv")

    assert sglang.body is not None
    assert b'"routed_dp_rank":1' in sglang.body
    assert (vllm.extra_headers, vllm.body) == (b"X-data-parallel-rank: 1\r\n", None)


def test_each_engine_is_told_its_rank_in_its_own_way() -> None:
    """One rank needs no telling; what the client wrote does not count."""
    service = _fleet(v={"ranks": 2, "engine": "vllm"}, s={"ranks": 2, "engine": "sglang"}, one={"engine": "sglang"})
    body = {**BODY, "data_parallel_rank": 9, "stream": True}

    vllm, sglang = (_way(service, body=body, x_kvrouter_worker=f"{name}/1") for name in "vs")
    alone = _way(service, body=body, x_kvrouter_worker="one")

    assert (vllm.extra_headers, vllm.body) == (b"X-data-parallel-rank: 1\r\n", None)
    assert sglang.extra_headers == b""
    assert sglang.body is not None
    assert sglang.body.endswith(b'"data_parallel_rank":1,"stream":true,"routed_dp_rank":1}')
    assert (alone.extra_headers, alone.body) == (b"", None)
