"""The router as its callers see it: who is chosen, on what grounds, and what a choice leaves behind."""

from collections.abc import Sequence

import pytest

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError, OverloadedError, UnknownModelError
from kvrouter.events import Source
from kvrouter.index import RANKS_MAX
from kvrouter.routing import Choice, FleetRank, Request, Router
from tests.routing.fleets import fleet, prompt_of, stored


def test_a_router_needs_no_arguments() -> None:
    """In process, with nothing but workers."""
    router = Router()
    router.add_worker("a", now=0.0)

    decision = router.route([1, 2, 3])

    assert (decision.worker_id, decision.rank, decision.source) == ("a", 0, Source("a", 0))
    assert decision.id in router.book


def test_the_worker_that_holds_the_prompt_gets_it() -> None:
    """A-503: confirmed blocks attract; the decision says how many tokens they save."""
    router = fleet("a", "b", "c")
    stored(router, "b", prompt_of(1, 2))

    decision = router.decide(Prompt(prompt_of(1, 2, 3)), now=0.0)

    assert (decision.worker_id, decision.policy, decision.reason) == ("b", "kv", "affinity")
    assert (decision.overlap_tokens, decision.confirmed_tokens) == (128, 128)
    assert (decision.prefill_tokens, decision.prompt_tokens, decision.blocks) == (64, 192, 12)


def test_the_last_token_is_always_computed() -> None:
    """A prompt that is cached to its end still costs one block."""
    router = fleet("a")
    stored(router, "a", prompt_of(1))
    router.route(prompt_of(2), now=0.0)

    assert router.decide(Prompt(prompt_of(1)), now=0.0).overlap_tokens == 48
    assert router.decide(Prompt(prompt_of(2)), now=0.0).overlap_tokens == 48


def test_a_shared_system_prompt_does_not_send_everything_to_one_worker() -> None:
    """Affinity yields to load, and the prompt spreads to every worker."""
    router = fleet("a", "b", "c", "d")

    chosen = [router.route(prompt_of(1, number, tokens=256), now=number / 1000).worker_id for number in range(2, 66)]

    assert {chosen.count(worker) for worker in "abcd"} <= set(range(10, 23))


def test_what_everybody_holds_attracts_nobody() -> None:
    """Equal overlap everywhere decides nothing: load does."""
    router = fleet("a", "b", "c")
    for worker in "abc":
        stored(router, worker, prompt_of(1))
    router.book.reserve("x", 0, prefill_tokens=100, blocks=1, now=0.0)
    router.book.reserve("y", 1, prefill_tokens=200, blocks=1, now=0.0)

    assert router.decide(Prompt(prompt_of(1, 2)), now=0.0).worker_id == "c"


def test_a_long_queue_outweighs_a_long_prefix() -> None:
    """A-154: a worker that would be much later is left although it holds the prompt."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1))
    router.book.reserve("x", 0, prefill_tokens=100_000, blocks=1, now=0.0)

    decision = router.decide(Prompt(prompt_of(1, 2)), now=0.0)

    assert (decision.worker_id, decision.reason, decision.overlap_tokens) == ("b", "escape", 0)


def test_a_conversation_stays_on_a_busy_worker_as_long_as_that_pays() -> None:
    """A queue shorter than the work saved does not drive it away."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1, 2, tokens=4096))
    router.book.reserve("x", 0, prefill_tokens=3000, blocks=1, now=0.0)

    assert router.decide(Prompt(prompt_of(1, 2, 3, tokens=4096)), now=0.0).worker_id == "a"


def test_doubtful_overlap_counts_less() -> None:
    """What a source that lost batches confirmed is discounted in choosing, not in what is reported."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1, 2))
    stored(router, "b", prompt_of(1, 2)[:112])
    stored(router, "a", prompt_of(7), sequence=5)
    assert router.ingest.is_trusted(0) == "replaying"

    decision = router.decide(Prompt(prompt_of(1, 2, 3)), now=0.0)

    assert decision.worker_id == "b"
    shown = {each.worker_id: each for each in decision.candidates}
    assert shown["a"].overlap_tokens == 128
    assert shown["a"].cost > shown["b"].cost


def test_without_a_prompt_only_load_counts() -> None:
    """Paths that we know nothing about go where there is least to do."""
    router = fleet("a", "b")
    router.book.reserve("x", 0, prefill_tokens=10, blocks=1, now=0.0)

    decision = router.decide(None, now=0.0)
    router.commit(decision, id="y", now=0.0)

    assert (decision.worker_id, decision.reason, decision.blocks, decision.prefill_tokens) == ("b", "load", 0, 0)
    assert router.book.load(decision.dense_rank).active_requests == 1


def test_models_decide_who_is_asked() -> None:
    """Only workers that serve the model are candidates; an unknown one is named with the known."""
    router = Router()
    router.add_worker("a", models=("small",), now=0.0)
    router.add_worker("b", models=("large", "small"), now=0.0)

    assert router.decide(None, model="large", now=0.0).worker_id == "b"
    with pytest.raises(UnknownModelError) as caught:
        router.decide(None, model="huge", now=0.0)
    assert caught.value.known == ("large", "small")

    router.set_models("a", ["huge"])
    assert router.decide(None, model="huge", now=0.0).worker_id == "a"


def test_a_worker_without_models_serves_any() -> None:
    """As long as it has not said what it serves; made-up names do not pile up."""
    router = fleet("a")

    for number in range(3000):
        assert router.decide(None, model=f"model-{number}", now=0.0).worker_id == "a"


def test_nobody_to_ask_is_said_clearly() -> None:
    """No worker at all, none routable, none left after conditions: each has its own words."""
    router = Router()
    with pytest.raises(NoWorkerError, match="there are no workers"):
        router.decide(None, now=0.0)
    router.add_worker("a", routable=False, now=0.0)
    with pytest.raises(NoWorkerError, match="not routable: a"):
        router.decide(None, now=0.0)
    router.set_routable("a", True, now=0.0)
    with pytest.raises(NoWorkerError, match="none of the 1 available ranks"):
        router.decide(None, exclude=["a"], now=0.0)
    with pytest.raises(NoWorkerError, match="none of the 1 available ranks"):
        router.decide(None, allowed=["b"], now=0.0)
    with pytest.raises(NoWorkerError, match="rank 3 of worker 'a'"):
        router.decide(None, pinned=Source("a", 3), now=0.0)


def test_conditions_of_a_request_are_kept() -> None:
    """Excluded workers, allowed workers and a pinned rank override cache and load."""
    router = fleet("a", "b", "c", ranks=2)
    stored(router, "a", prompt_of(1))
    prompt = Prompt(prompt_of(1, 2))

    assert router.decide(prompt, now=0.0).worker_id == "a"
    assert router.decide(prompt, exclude={"a"}, now=0.0).worker_id != "a"
    assert router.decide(prompt, allowed={"c"}, now=0.0).worker_id == "c"
    assert router.decide(prompt, pinned=Source("b", 1), now=0.0).source == Source("b", 1)


def test_an_unroutable_worker_keeps_its_blocks() -> None:
    """A stopped process keeps its cache: when it is back, so is its attraction."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1))

    router.set_routable("a", False, now=1.0)
    assert router.decide(Prompt(prompt_of(1, 2)), now=1.0).worker_id == "b"

    router.set_routable("a", True, now=2.0)
    assert router.decide(Prompt(prompt_of(1, 2)), now=2.0).worker_id == "a"


def test_ranks_are_dense_and_reused_only_after_they_are_cleared() -> None:
    """A new worker in an old place inherits neither blocks nor predictions nor load."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1))
    router.route(prompt_of(1, 2), now=0.0)

    router.remove_worker("a", now=1.0)
    numbers = router.add_worker("c", ranks=2, first_rank=4, block_size=16, now=1.0)

    assert numbers == [0, 2]
    decision = router.decide(Prompt(prompt_of(1, 2)), allowed={"c"}, now=1.0)
    assert (decision.overlap_tokens, decision.rank) == (0, 4)
    assert router.book.load(0).active_requests == 0
    assert len(router.book) == 0


def test_a_worker_that_left_cannot_be_booked() -> None:
    """Even if its number belongs to another one by now."""
    router = fleet("a")
    decision = router.decide(Prompt(prompt_of(1)), now=0.0)
    router.remove_worker("a", now=0.0)
    router.add_worker("b", now=0.0)

    with pytest.raises(NoWorkerError, match="'a' left"):
        router.commit(decision, id=1, now=0.0)
    assert len(router.book) == 0


def test_the_fleet_can_be_listed() -> None:
    """By worker and by dense rank, for reports."""
    router = fleet("a", "b", ranks=2, models=("m",))

    assert [worker.worker_id for worker in router.fleet.workers()] == ["a", "b"]
    assert len(router.fleet) == 2
    assert router.fleet.worker("b").models == {"m"}
    third = router.fleet.at(2)
    assert third is not None
    assert third.source == Source("b", 0)
    assert router.fleet.at(99) is None


def test_wrong_workers_are_refused() -> None:
    """Ids are unique, numbers positive, the fleet bounded."""
    router = fleet("a")
    with pytest.raises(ValueError, match="'a' exists already"):
        router.add_worker("a", now=0.0)
    with pytest.raises(ValueError, match="ranks is 0"):
        router.add_worker("b", ranks=0, now=0.0)
    with pytest.raises(ValueError, match=f"exceed the {RANKS_MAX}"):
        router.add_worker("b", ranks=RANKS_MAX, now=0.0)
    with pytest.raises(KeyError):
        router.remove_worker("b", now=0.0)
    with pytest.raises(ValueError, match="'best' is unknown; known: kv, round-robin"):
        Router(policy="best")


def test_what_is_booked_ends_by_its_lease() -> None:
    """Somebody who forgets to free does not weigh for ever."""
    router = fleet("a", lease_seconds=10.0)
    decision = router.route(prompt_of(1), now=0.0)
    assert router.book.load(0).prefill_tokens == 64

    router.route(prompt_of(2), now=20.0)

    assert decision.id not in router.book
    assert router.book.load(0).prefill_tokens == 64


def test_too_many_bookings_are_refused() -> None:
    """The book is bounded."""
    router = fleet("a", reservations_max=1)
    router.route([1], now=0.0)

    with pytest.raises(OverloadedError):
        router.route([1], now=0.0)


def test_a_decision_explains_itself_as_things_were_then() -> None:
    """Later changes of load do not change the explanation, and no prompt is kept."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1))
    decision = router.route(prompt_of(1, 2), now=0.0)
    router.book.reserve("later", 1, prefill_tokens=999, blocks=9, now=0.0)

    first, second = decision.candidates

    assert (first.worker_id, first.overlap_tokens, first.confirmed_tokens) == ("a", 64, 64)
    assert first.cost == pytest.approx(decision.cost)
    assert (second.worker_id, second.prefill_tokens, second.active_requests) == ("b", 0, 0)
    assert decision.prompt is None
    assert "worker_id='a'" in repr(decision)


def test_a_large_fleet_explains_what_mattered() -> None:
    """The chosen rank and the ranks that hold some of the prompt, up to a bound."""
    router = Router()
    for number in range(100):
        router.add_worker(f"w{number}", block_size=16, now=0.0)
    stored(router, "w70", prompt_of(1))
    stored(router, "w71", prompt_of(1))

    decision = router.decide(Prompt(prompt_of(1, 2)), now=0.0)

    assert {each.worker_id for each in decision.candidates} == {"w70", "w71"}


def test_potential_loads_include_the_prompt() -> None:
    """What each rank would carry, as the selection API reports it."""
    router = fleet("a", "b", share_active_blocks=True)
    router.route(prompt_of(1, 2), now=0.0)

    loads = {each.worker_id: each for each in router.potential_loads(Prompt(prompt_of(1, 3)), now=0.0)}

    assert (loads["a"].prefill_tokens, loads["a"].decode_blocks, loads["a"].active_requests) == (128 + 64, 12, 1)
    assert (loads["b"].prefill_tokens, loads["b"].decode_blocks, loads["b"].active_requests) == (128, 8, 0)
    assert router.potential_loads(None, now=0.0)[0].decode_blocks == 8


def test_the_same_history_gives_the_same_choices() -> None:
    """Nothing is left to chance, not even ties."""

    def history(policy: str) -> list[str]:
        router = fleet("a", "b", "c", policy=policy, seed=7)
        return [router.route(prompt_of(number % 3, number), now=number / 10).worker_id for number in range(50)]

    for policy in ("kv", "round-robin", "random", "least-loaded", "sticky"):
        assert history(policy) == history(policy)


def test_a_policy_of_ones_own_is_welcome() -> None:
    """Anything that chooses among candidates will do, for a router or for one request."""

    class Last:
        name = "last"

        def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:
            return candidates[-1], "because"

    router = fleet("a", "b", "c")

    decision = router.decide(None, policy=Last(), now=0.0)

    assert (decision.worker_id, decision.policy, decision.reason) == ("c", "last", "because")
    assert router.decide(None, policy="round-robin", now=0.0).policy == "round-robin"
    assert Router(policy=Last()) is not None


def test_a_request_is_told_of_from_its_choice_to_its_end() -> None:
    """The first token ends its prefill load, the end frees its booking; whom nobody knows is no error."""
    router = fleet("a")
    decision = router.route(prompt_of(1, 2), now=0.0)

    assert router.first_token(decision.id, now=0.5)
    assert (router.book.load(0).prefill_tokens, router.book.load(0).active_requests) == (0, 1)
    assert router.finished(decision.id, now=1.0, cached_tokens=0)

    assert router.book.load(0).active_requests == 0
    assert not router.first_token(decision.id, now=1.0)
    assert not router.finished(decision.id, now=1.0, completed=False)


def test_the_least_time_to_a_first_token_is_predicted() -> None:
    """Over all candidates, and nothing is booked by asking."""
    router = fleet("a", "b")
    router.book.reserve("x", 0, prefill_tokens=10_000, blocks=1, now=0.0)
    idle = router.predict(Prompt(prompt_of(1, 2)), now=0.0)
    router.set_routable("b", False, now=0.0)

    assert 0 < idle < router.predict(Prompt(prompt_of(1, 2)), now=0.0)
    assert router.predict(None, now=0.0) > 0
    assert len(router.book) == 1


def test_a_decision_knows_what_became_of_it() -> None:
    """How long the first token took, and what the engine had cached; nothing where nobody told."""
    router = fleet("a")
    told, silent = (router.route(prompt_of(number, tokens=400), now=1.0) for number in range(2))

    router.first_token(told.id, now=1.5)
    router.finished(told.id, now=2.0, cached_tokens=16, completed=True)
    router.finished(silent.id, now=2.5, completed=False)

    assert (told.first_token_seconds, told.cached_tokens, told.completed) == (0.5, 16, True)
    assert (silent.first_token_seconds, silent.cached_tokens, silent.completed) == (None, None, False)


def offloaded(router: Router, worker: int, tokens: list[int], tier: str) -> None:
    """Let a rank have blocks of a prompt below its GPU."""
    router.ingest.lookup.index.store(worker, Prompt(tokens).hashes(16), tier)
    router.expire(0.0)


@pytest.mark.parametrize(("tier", "loading"), [("cpu", 0.1), ("disk", 0.4)])
def test_what_is_below_the_gpu_is_loaded_faster_than_computed(tier: str, loading: float) -> None:
    """It attracts, less than what is on the GPU does, and is not promised."""
    router = fleet("a", "b", "c")
    stored(router, "a", prompt_of(1, tokens=400))
    offloaded(router, 1, prompt_of(1, 2, tokens=400), tier)

    decision = router.decide(Prompt(prompt_of(1, 2, 3, tokens=400)), now=0.0)

    seconds = {each.worker_id: each.prefill_seconds for each in decision.candidates}
    assert decision.worker_id == "b"
    assert (decision.overlap_tokens, decision.confirmed_tokens) == (0, 0)
    assert decision.prefill_tokens == pytest.approx(400 + 800 * loading, abs=1)
    assert seconds["b"] < seconds["a"] < seconds["c"]
    stored(router, "c", prompt_of(1, 2, tokens=400))
    assert router.decide(Prompt(prompt_of(1, 2, 3, tokens=400)), now=0.0).worker_id == "c"


def test_a_prefix_goes_on_below_the_gpu() -> None:
    """Blocks on the GPU, then in memory, then on disk: each part has its own price."""
    router = fleet("a")
    prompt = prompt_of(1, 2, 3, 4, tokens=400)
    stored(router, "a", prompt[:400])
    offloaded(router, 0, prompt[:800], "cpu")
    offloaded(router, 0, prompt[:1200], "disk")

    decision = router.decide(Prompt(prompt), now=0.0)

    assert decision.overlap_tokens == 400
    assert decision.prefill_tokens == pytest.approx(400 + 400 * 0.1 + 400 * 0.4, abs=1)
