"""The selection API: shapes of Dynamo's standalone service, numbers of ours, leases that end."""

import json
from typing import Any

import pytest

from kvrouter.blocks import chain_hashes, sequence_hashes, token_bytes
from kvrouter.settings import RoutingSettings
from tests.service.inprocess import InProcess

TOKENS = list(range(100, 180))


@pytest.fixture
def service() -> InProcess:
    """Two workers registered as Dynamo's clients do, with numbers as ids; 1 holds four of the five blocks."""
    service = InProcess(routing=RoutingSettings(reservation_seconds=60.0))
    for number in (1, 2):
        service.add(
            healthy=False,
            worker_id=number,
            model_name="m",
            endpoint=f"http://w{number}:9000",
            block_size=16,
            kv_events_endpoints={"0": f"tcp://w{number}:5557"},
            max_num_batched_tokens=8192,
            total_kv_blocks=1000,
        )
    worker = service.service.registry.find(1)
    service.store(worker, TOKENS[:64])
    return service


def test_a_selection_has_the_shape_that_dynamos_clients_read(service: InProcess) -> None:
    """Names, types and units, with the worker's id as it was registered."""
    status, answer = service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m"})

    assert status == 200
    assert answer == {
        "model_name": "m",
        "routing_group": "default",
        "worker_id": 1,
        "dp_rank": 0,
        "endpoint": "http://w1:9000",
        "block_size": 16,
        "overlap": {"longest_matched": 64, "gpu": 64, "dp": {"0": 64}, "cpu": 64, "disk": 64},
        "usable_tokens": 64,
        "effective_prefill_tokens": 16,
        "potential_decode_blocks": 5,
    }


def test_matched_blocks_may_end_with_the_prompt_but_usable_tokens_may_not(service: InProcess) -> None:
    """An engine always computes the last token, so a whole match is worth one block less."""
    _, answer = service.call("POST", "/select", {"token_ids": TOKENS[:64], "model_name": "m"})

    assert answer["overlap"]["gpu"] == 64
    assert answer["usable_tokens"] == 48
    assert answer["effective_prefill_tokens"] == 16


def test_lower_tiers_count_on_top(service: InProcess) -> None:
    """`cpu` and `disk` include the tiers above them."""
    worker = service.service.registry.find(1)
    service.store(worker, TOKENS, medium="CPU")

    _, answer = service.call("POST", "/select", {"token_ids": [*TOKENS, 1], "model_name": "m"})
    _, scores = service.call("POST", "/overlap_scores", {"token_ids": [*TOKENS, 1], "model_name": "m"})

    assert (answer["overlap"]["gpu"], answer["overlap"]["cpu"], answer["overlap"]["disk"]) == (64, 80, 80)
    assert scores["workers"][0]["host_pinned_extension_blocks"] == 1


def test_hashes_do_instead_of_token_ids(service: InProcess) -> None:
    """Signed or unsigned, as long as there is one sequence hash per block."""
    hashes = sequence_hashes(TOKENS, 16).tolist()
    signed = [each - 2**64 if each >= 2**63 else each for each in hashes]
    local = chain_hashes(None, token_bytes(TOKENS), 16)

    for given in (hashes, signed):
        status, answer = service.call(
            "POST", "/select", {"block_hashes": local, "sequence_hashes": given, "isl_tokens": 80, "model_name": "m"}
        )
        assert (status, answer["worker_id"], answer["overlap"]["gpu"]) == (200, 1, 64)


def test_fields_that_are_null_are_not_there(service: InProcess) -> None:
    """Some clients write every field that they know."""
    hashes = sequence_hashes(TOKENS, 16).tolist()
    nothing = dict.fromkeys(("lora_name", "cache_salt", "selection_id", "pinned_worker", "routing_group", "advisory"))

    by_tokens = {"token_ids": TOKENS, "block_hashes": None, "sequence_hashes": None, "isl_tokens": None, **nothing}
    by_hashes = {"token_ids": None, "block_hashes": None, "sequence_hashes": hashes, "isl_tokens": 80, **nothing}

    for body in (by_tokens, by_hashes):
        status, answer = service.call("POST", "/select", body)
        assert (status, answer["worker_id"], answer["overlap"]["gpu"]) == (200, 1, 64)
    assert service.call("POST", "/select", {"token_ids": None})[1]["error"]["param"] == "token_ids"


def test_multimodal_items_are_part_of_the_hash(service: InProcess) -> None:
    """The same tokens with an image in the first block are another prompt."""
    infos = [{"mm_objects": [{"mm_hash": 2**63 + 5, "offsets": [[0, 4]]}]}, None]

    _, plain = service.call("POST", "/select_and_reserve", {"token_ids": TOKENS})
    _, with_image = service.call("POST", "/select_and_reserve", {"token_ids": TOKENS, "block_mm_infos": infos})
    _, routed = service.call(
        "POST",
        "/select_and_reserve",
        {"token_ids": [], "mm_routing_info": {"routing_token_ids": TOKENS, "block_mm_infos": infos}},
    )

    assert with_image["overlap"]["gpu"] == 0
    assert plain["sequence_hashes"][0] != with_image["sequence_hashes"][0]
    assert routed["sequence_hashes"] == with_image["sequence_hashes"]


def test_a_salt_and_an_adapter_are_worlds_of_their_own(service: InProcess) -> None:
    """Nothing cached without them counts with them."""
    for extra in ({"cache_salt": "tenant"}, {"lora_name": "adapter"}):
        _, answer = service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m", **extra})

        assert answer["overlap"]["longest_matched"] == 0


def test_a_reservation_is_load_until_it_is_deleted(service: InProcess) -> None:
    """Reserve, first token, blocks, end: the loads say so at each step."""
    loads: list[tuple[int, int, int]] = []

    def note() -> None:
        _, pools = service.call("GET", "/loads?model_name=m")
        (load,) = [each for each in pools[0]["loads"] if each["worker_id"] == 1]
        loads.append((load["active_requests"], load["potential_prefill_tokens"], load["potential_decode_blocks"]))

    status, answer = service.call(
        "POST", "/select_and_reserve", {"token_ids": TOKENS, "model_name": "m", "selection_id": "r1"}
    )
    note()
    for _ in range(2):
        assert service.call("POST", "/reservations/r1/prefill_complete") == (200, {"status": "ok"})
    note()
    assert service.call("POST", "/reservations/r1/output_block", {})[0] == 200
    note()
    assert service.call("DELETE", "/reservations/r1")[0] == 200
    note()

    assert (status, answer["isl_tokens"], answer["track_prefill_tokens"]) == (200, 80, True)
    assert len(answer["sequence_hashes"]) == 5
    assert loads == [(1, 16, 5), (1, 0, 5), (1, 0, 6), (0, 0, 0)]
    assert service.call("DELETE", "/reservations/r1")[0] == 404


def test_an_id_is_made_where_none_is_given_and_refused_where_it_is_taken(service: InProcess) -> None:
    """Ids are the gateway's; two requests never share one."""
    _, first = service.call("POST", "/select_and_reserve", {"token_ids": TOKENS})
    status, again = service.call(
        "POST", "/select_and_reserve", {"token_ids": TOKENS, "selection_id": first["selection_id"]}
    )

    assert len(first["selection_id"]) == 36
    assert (status, again["error"]["code"]) == (409, "already_reserved")


def test_a_selection_can_be_claimed_once_and_for_a_while(service: InProcess) -> None:
    """`/select` with an id, then `/reservations` with it."""
    service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m", "selection_id": "s1"})

    claimed = service.call("POST", "/reservations", {"selection_id": "s1"})
    taken = service.call("POST", "/reservations", {"selection_id": "s1"})
    service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m", "selection_id": "s2"})
    service.clock.now += 61
    late = service.call("POST", "/reservations", {"selection_id": "s2"})

    assert claimed == (
        201,
        {
            "selection_id": "s1",
            "model_name": "m",
            "routing_group": "default",
            "worker_id": 1,
            "dp_rank": 0,
            "endpoint": "http://w1:9000",
        },
    )
    assert taken[0] == 409
    assert (late[0], late[1]["error"]["code"]) == (404, "selection_not_found")


def test_a_worker_can_be_booked_explicitly(service: InProcess) -> None:
    """A gateway that chose for itself still tells us the load."""
    status, _ = service.call(
        "POST",
        "/reservations",
        {"selection_id": "e", "worker_id": 2, "dp_rank": 0, "token_ids": TOKENS, "effective_prefill_tokens": 7},
    )

    _, pools = service.call("GET", "/loads")
    assert status == 201
    assert [load["potential_prefill_tokens"] for load in pools[0]["loads"]] == [0, 7]


def test_a_lease_ends_unless_progress_renews_it(service: InProcess) -> None:
    """A gateway that dies does not weigh on a worker for ever."""
    for name in ("silent", "busy"):
        service.call("POST", "/select_and_reserve", {"token_ids": TOKENS, "selection_id": name})
    service.clock.now += 50
    service.call("POST", "/reservations/busy/output_block", {})
    service.clock.now += 20
    service.service.selection.expire(service.clock.now)

    assert service.call("POST", "/reservations/silent/prefill_complete")[0] == 404
    assert service.call("POST", "/reservations/busy/prefill_complete")[0] == 200
    assert service.service.traffic.reservations_expired == 1
    assert service.service.selection.reservations == 1


def test_potential_loads_tell_what_each_rank_would_carry(service: InProcess) -> None:
    """Uncached prefill and blocks on top of what is there."""
    service.call("POST", "/select_and_reserve", {"token_ids": TOKENS, "model_name": "m"})

    _, loads = service.call("POST", "/potential_loads", {"token_ids": TOKENS, "model_name": "m"})

    by_worker = {each["worker_id"]: each for each in loads}
    # One block is booked as prefill already; since then it is also expected to be cached.
    assert by_worker[1] == {
        "worker_id": 1,
        "dp_rank": 0,
        "potential_prefill_tokens": 32,
        "potential_decode_blocks": 10,
        "active_requests": 1,
    }
    assert by_worker[2]["potential_prefill_tokens"] == 80


def test_overlap_scores_are_blocks_with_usable_tokens(service: InProcess) -> None:
    """One row per rank, also for ranks that hold nothing or may not be chosen."""
    service.service.registry.set_draining(2, draining=True, now=service.clock.now)
    _, scores = service.call("POST", "/overlap_scores", {"token_ids": TOKENS, "model_name": "m"})

    assert (scores["block_size"], scores["num_blocks"]) == (16, 5)
    assert [
        (each["worker_id"], each["device_blocks"], each["usable_tokens"], each["state"], each["lifecycle"])
        for each in scores["workers"]
    ] == [(1, 4, 64, "live", "schedulable"), (2, 0, 0, "predicted", "draining")]


@pytest.mark.parametrize(
    ("options", "worker_id"),
    [
        ({"pinned_worker": {"worker_id": 2, "dp_rank": 0}}, 2),
        ({"allowed_worker_ids": [2]}, 2),
        ({"allowed_worker_ids": [1, 77]}, 1),
        ({"routing_group": "default"}, 1),
        ({"session_context": {"session_id": "s", "input_trigger": "user_message"}}, 1),
        ({"router_config_override": {"overlap_score_credit": 1}, "priority_jump": 1, "unheard_of": [1]}, 1),
    ],
)
def test_options_narrow_the_choice_and_unknown_ones_are_ignored(
    service: InProcess, options: dict[str, Any], worker_id: int
) -> None:
    """What Dynamo's clients may send is accepted."""
    status, answer = service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m", **options})

    assert (status, answer["worker_id"]) == (200, worker_id)


def test_taints_and_groups_keep_workers_apart(service: InProcess) -> None:
    """A worker is chosen only where it carries every required taint, and within the group that was named."""
    service.add(
        healthy=False, worker_id=3, model_name="m", endpoint="x", routing_group="other", taints=["fast"], block_size=16
    )

    def chosen(**options: Any) -> Any:
        return service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m", **options})

    assert chosen(routing_group="other")[1]["worker_id"] == 3
    assert chosen()[1]["worker_id"] == 1
    assert chosen(routing_group="other", routing_constraints={"required_taints": ["fast"]})[1]["worker_id"] == 3
    assert chosen(routing_constraints={"required_taints": ["fast"]})[0] == 503
    assert chosen(routing_group="none")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/select", b"{", 400, None),
        ("/select", b"[]", 400, None),
        ("/select", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "token_ids": [1]}', 400, None),
        ("/select", {}, 400, "token_ids"),
        ("/select", {"token_ids": "x"}, 400, "token_ids"),
        ("/select", {"token_ids": [1.5]}, 400, "token_ids"),
        ("/select", {"token_ids": [-1]}, 400, "token_ids"),
        ("/select", {"token_ids": [2**32]}, 400, "token_ids"),
        ("/select", {"token_ids": [2**70]}, 400, "token_ids"),
        ("/select", {"token_ids": [1], "model_name": 5}, 400, "model_name"),
        ("/select", {"sequence_hashes": [1], "block_hashes": [], "isl_tokens": 16}, 400, "sequence_hashes"),
        ("/select", {"sequence_hashes": [1], "block_hashes": [1]}, 400, "isl_tokens"),
        ("/select", {"sequence_hashes": [1], "block_hashes": 5, "isl_tokens": 16}, 400, "block_hashes"),
        ("/select", {"sequence_hashes": [2**64], "isl_tokens": 16}, 400, "sequence_hashes"),
        ("/select", {"sequence_hashes": [-(2**63) - 1], "isl_tokens": 16}, 400, "sequence_hashes"),
        ("/select", {"sequence_hashes": [1], "block_hashes": [1], "isl_tokens": 3}, 400, "isl_tokens"),
        ("/select", {"sequence_hashes": [1], "block_hashes": [1], "isl_tokens": 2**70}, 400, "isl_tokens"),
        ("/select", {"token_ids": [1], "model_name": "nope"}, 404, "model"),
        ("/select", {"token_ids": [1], "pinned_worker": {"worker_id": 9}}, 404, "worker_id"),
        ("/select", {"token_ids": [1], "pinned_worker": {"worker_id": 1, "dp_rank": 3}}, 400, "dp_rank"),
        ("/select_and_reserve", {"token_ids": [1], "selection_id": "a/b"}, 400, "selection_id"),
        ("/select_and_reserve", {"token_ids": [1], "effective_prefill_tokens": 5}, 400, "effective_prefill_tokens"),
        ("/reservations", {}, 400, "selection_id"),
        ("/reservations", {"selection_id": "none"}, 404, "selection_id"),
        ("/reservations/none/output_block", {"decay_fraction": 2}, 400, "decay_fraction"),
        ("/reservations/none/output_block", {}, 404, "id"),
        ("/reservations/none/prefill_complete", None, 404, "id"),
        ("/reservations/none/unheard_of", None, 404, None),
    ],
)
def test_mistakes_of_clients_are_theirs(
    service: InProcess, path: str, body: Any, status: int, param: str | None
) -> None:
    """4xx in the one error shape, naming the field; never 503 for a bad request."""
    answered, error = service.call("POST", path, body)

    assert answered == status, error
    assert error["error"]["param"] == param
    assert error["error"]["message"]


def test_a_removed_worker_takes_its_reservations_along(service: InProcess) -> None:
    """Nothing is held on a worker that is not there."""
    service.call("POST", "/select_and_reserve", {"token_ids": TOKENS, "model_name": "m", "selection_id": "r"})

    service.service.registry.remove(1, now=service.clock.now)

    assert service.call("POST", "/reservations/r/prefill_complete")[0] == 404
    assert service.call("POST", "/select", {"token_ids": TOKENS, "model_name": "m"})[1]["worker_id"] == 2


def test_an_advisory_selection_adds_the_workers_load_and_keeps_nothing(service: InProcess) -> None:
    """It only looks."""
    _, answer = service.call(
        "POST", "/select", {"token_ids": TOKENS, "model_name": "m", "advisory": True, "selection_id": "a"}
    )

    assert answer["worker_load"] == {
        "active_prefill_tokens": 0,
        "prefill_token_capacity": 8192,
        "total_kv_blocks": 1000,
    }
    assert service.call("POST", "/reservations", {"selection_id": "a"})[0] == 404


def test_a_reservation_can_be_explained(service: InProcess) -> None:
    """Decisions of gateways' requests are in the same ring."""
    service.call("POST", "/select_and_reserve", {"token_ids": TOKENS, "model_name": "m", "selection_id": "r"})

    explained = service.service.decisions.explain("r")

    assert explained is not None
    assert (explained["worker_id"], explained["overlap_tokens"], explained["model"]) == ("1", 64, "m")


@pytest.mark.parametrize(
    "text",
    [b"[]", b"[ ]", b"[7]", b"[1,2]", b"[1, 2]", b"[1 ,2]", b"[ 1,2 ]", b"[1,\n 2]", b"[4294967295,0]", b"[1,2, 3]"],
)
def test_every_way_to_write_token_ids_is_read_alike(service: InProcess, text: bytes) -> None:
    """Spaces and line ends are the client's business."""
    expected = sequence_hashes(json.loads(text), 1).tolist()
    service.add(healthy=False, worker_id="one", model_name="one", endpoint="x", block_size=1)

    status, answer = service.call("POST", "/select_and_reserve", b'{"model_name":"one","token_ids":%b}' % text)

    assert status == 200
    assert [each % 2**64 for each in answer["sequence_hashes"]] == expected
    assert answer["isl_tokens"] == len(expected)


def test_another_method_is_refused_by_name(service: InProcess) -> None:
    """405 instead of a puzzling 404."""
    assert service.call("GET", "/select")[0] == 405
