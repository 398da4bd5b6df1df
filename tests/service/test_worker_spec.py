"""What `--worker` and `POST /workers` accept, and how they refuse."""

import pytest

from kvrouter.errors import RequestError, SettingsError
from kvrouter.service.worker_spec import parse_worker_spec, worker_spec_from_fields


def test_a_url_alone_is_a_worker() -> None:
    """Everything else has a default, the id is host and port."""
    spec = parse_worker_spec("http://10.0.0.5:8000")

    assert (spec.worker_id, spec.url, spec.ranks, spec.models) == ("10.0.0.5:8000", "http://10.0.0.5:8000", 1, ())
    assert not spec.trusted
    assert spec.events == {}


def test_every_field_of_the_flag_arrives() -> None:
    """The text form carries what the JSON form does."""
    spec = parse_worker_spec(
        "https://gpu.example/v2,id=a,events=tcp://gpu:5557,replay=tcp://gpu:6557,ranks=2,model=m,block_size=32,"
        "topic=kv,api_key=secret"
    )

    assert spec.worker_id == "a"
    assert spec.events == {0: "tcp://gpu:5557", 1: "tcp://gpu:5558"}
    assert spec.replay == {0: "tcp://gpu:6557", 1: "tcp://gpu:6558"}
    assert (spec.models, spec.block_size, spec.topic, spec.api_key) == (("m",), 32, "kv", "secret")


def test_a_first_rank_shifts_the_ports() -> None:
    """Rank r publishes on base + r, wherever the first rank of the worker is."""
    spec = worker_spec_from_fields(
        {
            "url": "http://h:1",
            "kv_events_endpoint": "tcp://h:5557",
            "data_parallel_start_rank": 2,
            "data_parallel_size": 2,
        }
    )

    assert spec.events == {2: "tcp://h:5559", 3: "tcp://h:5560"}


def test_dynamos_fields_are_understood() -> None:
    """A client of Dynamo's selection service registers its workers as it always did."""
    spec = worker_spec_from_fields(
        {
            "worker_id": 7,
            "model_name": "m",
            "endpoint": "http://w7:9000",
            "block_size": 16,
            "kv_events_endpoints": {"0": "tcp://w7:5557"},
            "total_kv_blocks": 1000,
            "taints": ["gpu-a"],
            "stable_routing_id": None,
        }
    )

    assert (spec.worker_id, spec.public_id, spec.trusted) == ("7", 7, True)
    assert spec.echoed() == {"total_kv_blocks": 1000, "taints": ["gpu-a"]}
    assert spec.traits.names == {"gpu-a"}


def test_an_opaque_endpoint_is_for_gateways_only() -> None:
    """What is not an HTTP address can be selected, but nothing is sent there."""
    spec = worker_spec_from_fields({"worker_id": 1, "endpoint": "dyn://ns.backend.generate"})

    assert spec.url is None
    assert spec.models == ("default",)


@pytest.mark.parametrize(
    ("fields", "param", "limit"),
    [
        ({}, "url", "needs a url"),
        ({"url": "ftp://h:1"}, "url", "http"),
        ({"url": "http://"}, "url", "host"),
        ({"url": "http://h:0"}, "url", "1..65535"),
        ({"url": "http://h:99999"}, "url", "range"),
        ({"url": "http://u:p@h:1"}, "url", "api_key"),
        ({"url": "http://h:1/?x=1"}, "url", "query"),
        ({"url": "http://h:1", "block_size": 0}, "block_size", "1..65536"),
        ({"url": "http://h:1", "block_size": True}, "block_size", "whole number"),
        ({"url": "http://h:1", "ranks": 0}, "ranks", "1..256"),
        ({"url": "http://h:1", "ranks": 257}, "ranks", "1..256"),
        ({"url": "http://h:1", "data_parallel_start_rank": -1}, "data_parallel_start_rank", "0..255"),
        ({"url": "http://h:1", "worker_id": -1}, "worker_id", "0..2^64-1"),
        ({"url": "http://h:1", "worker_id": "a b"}, "worker_id", "1..128"),
        ({"url": "http://h:1", "id": "a b"}, "id", "1..128"),
        ({"url": "http://h:1", "worker_id": 1.5}, "worker_id", "text or a whole number"),
        ({"url": "http://h:1", "events": "h:5557"}, "events", "tcp://"),
        ({"url": "http://h:1", "events": "tcp://h:0"}, "events", "port"),
        ({"url": "http://h:1", "events": "tcp://h:65535", "ranks": 2}, "events", "no port left"),
        ({"url": "http://h:1", "replay": "tcp://*:5557"}, "replay", "host"),
        ({"url": "http://h:1", "kv_events_endpoints": {"1": "tcp://h:1"}}, "kv_events_endpoints", "0..0"),
        ({"url": "http://h:1", "kv_events_endpoints": []}, "kv_events_endpoints", "map"),
        ({"url": "http://h:1", "kv_events_endpoint": "h:5557"}, "kv_events_endpoint", "tcp://"),
        ({"url": "http://h:1", "models": [1]}, "models", "names"),
        ({"url": "http://h:1", "model": ""}, "model", "1..512"),
        ({"url": "http://h:1", "taints": "gpu"}, "taints", "list"),
        ({"url": "http://h:1", "api_key": "a b"}, "api_key", "printable"),
        ({"url": "http://h:1", "blocksize": 16}, "blocksize", "did you mean block_size?"),
        ({"url": "http://h:1", "wheels": 4}, "wheels", "fields are url, id, model, events"),
        ({"url": "http://h:1", "ranks": 1, "data_parallel_size": 1}, "data_parallel_size", "twice"),
        ({"endpoint": "dyn://x"}, "worker_id", "needed"),
    ],
)
def test_a_bad_field_is_named_with_its_limit(fields: dict[str, object], param: str, limit: str) -> None:
    """Nothing half-right is registered."""
    with pytest.raises(RequestError) as caught:
        worker_spec_from_fields(fields)

    assert caught.value.param == param
    assert limit in caught.value.message
    assert caught.value.status == 400


def test_the_flag_is_refused_in_one_line_without_its_key() -> None:
    """The error names the worker and the field, never a secret."""
    with pytest.raises(SettingsError) as caught:
        parse_worker_spec("http://h:1,api_key=top-secret,block_size=0")

    assert "block_size" in str(caught.value)
    assert "top-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_in_a_url_are_refused_unseen() -> None:
    """They would end up in logs otherwise."""
    with pytest.raises(SettingsError, match="credentials") as caught:
        parse_worker_spec("http://me:secret@h:1")

    assert "secret" not in str(caught.value)


def test_a_replay_without_events_is_refused() -> None:
    """It would be ignored, and somebody meant something by it."""
    with pytest.raises(SettingsError, match="events=tcp://HOST:PORT"):
        parse_worker_spec("http://h:1,replay=tcp://h:5657")


@pytest.mark.parametrize(
    "text", ["http://h:1,ranks", "http://h:1,rank=2", "", "http://h:1,ranks=two", "http://h:1,id=a,id=b"]
)
def test_a_malformed_flag_is_a_settings_error(text: str) -> None:
    """Whatever is wrong with it, the process ends with one line."""
    with pytest.raises(SettingsError):
        parse_worker_spec(text)


def test_a_merge_changes_some_fields_and_takes_others_back() -> None:
    """PATCH works on what was registered, under either spelling."""
    spec = parse_worker_spec("http://h:1,model=a,events=tcp://h:5557")

    changed = worker_spec_from_fields(
        spec.merged({"model_name": "b", "kv_events_endpoints": {"0": "tcp://h:6000"}, "topic": "t"})
    )

    assert (changed.models, changed.events, changed.topic) == (("b",), {0: "tcp://h:6000"}, "t")
    assert worker_spec_from_fields(changed.merged({"models": None})).models == ()
