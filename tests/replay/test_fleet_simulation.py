"""A simulated fleet behind the router's own code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.errors import SettingsError
from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.measures import Goal, measure
from kvrouter.replay.outcome import Outcome
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.synthetic import KINDS, Agents, MultiTurn, SharedPrompt, Uniform
from kvrouter.replay.trace import Trace, Turn, keys_of_ids
from kvrouter.routing import POLICIES

SMALL = FleetOptions(workers=3, rates=EngineRates(cache_tokens=200_000))
CHATS = MultiTurn(requests=150).trace(1)


def hits(outcome: Outcome) -> float:
    """Share of prompt tokens that were cached."""
    return float(outcome.cached_tokens.sum() / outcome.input_tokens.sum())


def single(*, arrival: float = 0.0, ids: tuple[int, ...] = (1, 2), output: int = 3) -> Turn:
    """One request of two blocks and a token."""
    return Turn(
        arrival=arrival, input_tokens=512 * len(ids) + 1, output_tokens=output, keys=keys_of_ids(ids), session="s"
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_gives_the_same_outcome_again(policy: str) -> None:
    """All that is drawn is drawn from the seed."""
    first, again = (simulate(CHATS, policy, SMALL, seed=4) for _ in range(2))

    assert np.array_equal(first.first_token, again.first_token)
    assert np.array_equal(first.worker, again.worker)
    assert np.array_equal(first.cached_tokens, again.cached_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_comes_to_an_end(kind: str) -> None:
    """In order: arrival, first token, end; and no hit is longer than its prompt."""
    outcome = simulate(KINDS[kind](requests=120).trace(2), "kv", SMALL, seed=1)

    assert (outcome.first_token > outcome.arrival).all()
    assert (outcome.end >= outcome.first_token).all()
    assert (outcome.cached_tokens < outcome.input_tokens).all()
    assert sum(worker.requests for worker in outcome.workers) == 120
    computed = sum(worker.prefilled_tokens for worker in outcome.workers)
    assert computed == (outcome.input_tokens - outcome.cached_tokens).sum()


def test_one_request_takes_what_the_rates_say() -> None:
    """A step for the prompt and one for each further token."""
    rates = EngineRates(attention_tokens=0.0)
    outcome = simulate(Trace(name="t", turns=[single()]), "kv", replace(SMALL, rates=rates))

    step = rates.step_seconds + 1025 / rates.prefill_tokens_per_second
    assert outcome.ttft[0] == pytest.approx(step)
    decode = rates.step_seconds + rates.decode_seconds + rates.decode_seconds_per_request
    assert outcome.end[0] - outcome.first_token[0] == pytest.approx(2 * decode)


def test_the_router_hears_what_the_workers_cached() -> None:
    """The second request is promised what the first one left, and finds it."""
    trace = Trace(name="t", turns=[single(), single(arrival=60.0), single(arrival=120.0, ids=(1, 9))])
    outcome = simulate(trace, "kv", SMALL)

    assert outcome.promised_tokens.tolist() == outcome.cached_tokens.tolist() == [0, 1024, 512]
    assert len(set(outcome.worker.tolist())) == 1


def test_a_turn_waits_for_the_answer_before_it() -> None:
    """It comes its thinking time after the end, however long that took."""
    outcome = simulate(CHATS, "kv", SMALL)

    for position, turn in enumerate(CHATS.turns):
        if turn.follows is not None:
            assert outcome.arrival[position] == pytest.approx(outcome.end[turn.follows] + turn.arrival)


def test_sessions_that_stay_hit_what_their_answers_left() -> None:
    """Nearly everything but what is new in each turn."""
    sticky = simulate(CHATS, "sticky", SMALL)
    spread = simulate(CHATS, "round-robin", SMALL)

    assert hits(sticky) > 0.7 > hits(spread)


def test_a_request_that_no_worker_can_hold_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(SettingsError, match="request 1 of t needs 5124 tokens of KV cache; a worker has 5120"):
        simulate(
            Trace(name="t", turns=[single(), single(ids=tuple(range(10)))]),
            "kv",
            FleetOptions(workers=1, rates=EngineRates(cache_tokens=5120)),
        )


class TestEvents:
    """What is wrong with the way of events is seen in what the router promises."""

    traffic = SharedPrompt(requests=250, rate=20.0).trace(3)

    def promised_wrong(self, options: FleetOptions) -> float:
        outcome = simulate(self.traffic, "least-loaded", options, seed=2)
        return measure(outcome, goal=Goal()).promise_error

    def test_late_events_make_promises_wrong(self) -> None:
        """A router that hears late promises too little."""
        assert self.promised_wrong(replace(SMALL, event_delay_seconds=8.0)) > self.promised_wrong(SMALL)

    def test_what_is_lost_is_replayed(self) -> None:
        """With an engine that can be asked, a lossy way costs next to nothing."""
        lossy = replace(SMALL, event_loss=0.2)

        assert self.promised_wrong(lossy) < 0.02
        assert self.promised_wrong(replace(lossy, event_replay=False)) > self.promised_wrong(lossy)

    def test_without_any_event_there_are_predictions(self) -> None:
        """The approximate mode: hits all the same."""
        deaf = simulate(CHATS, "kv", replace(SMALL, event_loss=1.0))

        assert hits(deaf) > 0.5


class TestReplicas:
    def test_what_routers_tell_each_other_spreads_work_better(self) -> None:
        """Load that others caused and nobody told of is not seen; and the later one is told, the less it is worth."""
        busy = Uniform(requests=300, rate=5.6).trace(3)
        three = replace(SMALL, routers=3)
        alone, soon, late, never = (
            measure(simulate(busy, "kv", options, seed=1), goal=Goal()).ttft_mean
            for options in (
                SMALL,
                replace(three, replica_interval_seconds=0.05, replica_delay_seconds=0.0),
                replace(three, replica_interval_seconds=0.5, replica_delay_seconds=0.2),
                replace(three, replica_state=False),
            )
        )

        assert soon < late < never
        assert soon < alone * 1.1

    def test_one_router_has_nobody_to_tell(self) -> None:
        """Nothing is drawn, sent or decided otherwise because it could."""
        told, alone = (simulate(CHATS, "kv", replace(SMALL, replica_state=state), seed=2) for state in (True, False))

        assert np.array_equal(told.first_token, alone.first_token)
        assert np.array_equal(told.worker, alone.worker)

    def test_several_give_the_same_outcome_again(self) -> None:
        """When who tells whom is drawn from the seed, too."""
        first, again = (simulate(CHATS, "kv", replace(SMALL, routers=2), seed=4) for _ in range(2))

        assert np.array_equal(first.first_token, again.first_token)

    def test_all_of_them_hear_the_same_events(self) -> None:
        """A session whose turns go through different routers still hits."""
        outcome = simulate(CHATS, "kv", replace(SMALL, routers=3))

        assert hits(outcome) > 0.6


class TestRestarts:
    def test_lost_requests_are_sent_again(self) -> None:
        """Nothing is lost but time."""
        options = replace(SMALL, restart_every_seconds=15.0, restart_seconds=5.0)
        outcome = simulate(CHATS, "kv", options, seed=1)

        assert outcome.retries > 0
        assert (outcome.first_token > outcome.arrival).all()
        assert (outcome.end >= outcome.first_token).all()

    def test_a_fleet_that_is_all_away_makes_requests_wait(self) -> None:
        """One worker that is away most of the time."""
        options = FleetOptions(
            workers=1, rates=EngineRates(cache_tokens=200_000), restart_every_seconds=6.0, restart_seconds=20.0
        )
        trace = Trace(name="t", turns=[single(arrival=10.0 * number) for number in range(12)])
        outcome = simulate(trace, "kv", options, seed=1)

        assert outcome.ttft.max() > 5.0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 100),
    routers=st.integers(1, 3),
    tells=st.booleans(),
    delay=st.sampled_from([0.0, 0.5, 20.0]),
    loss=st.sampled_from([0.0, 0.3, 1.0]),
    replays=st.booleans(),
    restarts=st.sampled_from([0.0, 20.0]),
)
def test_any_misfortune_comes_to_an_end(
    seed: int, routers: int, tells: bool, delay: float, loss: float, replays: bool, restarts: float
) -> None:
    """Everything that can go wrong, together."""
    options = FleetOptions(
        workers=2,
        rates=EngineRates(cache_tokens=120_000, running_max=16),
        routers=routers,
        replica_state=tells,
        event_delay_seconds=delay,
        event_loss=loss,
        event_replay=replays,
        restart_every_seconds=restarts,
        restart_seconds=3.0,
    )
    outcome = simulate(Agents(requests=60, rate=1.0, context_tokens=60_000).trace(seed), "kv", options, seed=seed)

    assert (outcome.end >= outcome.first_token).all()
    assert (outcome.cached_tokens < outcome.input_tokens).all()


def test_progress_is_told() -> None:
    """Shares that grow."""
    shares: list[float] = []
    simulate(Uniform(requests=1100).trace(1), "random", SMALL, progress=shares.append)

    assert shares == sorted(shares)
    assert len(shares) >= 4
