"""Made-up traffic: the same for a seed, and with the one property that it is made for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import SettingsError
from kvrouter.replay.bounds import bounds_of
from kvrouter.replay.synthetic import KINDS, parse_synthetic


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_same_trace_again(kind: str) -> None:
    """And another seed another one."""
    first, again, other = (KINDS[kind](requests=200).trace(seed) for seed in (1, 1, 2))

    assert [turn.arrival for turn in first.turns] == [turn.arrival for turn in again.turns]
    assert [turn.keys.tolist() for turn in first.turns] == [turn.keys.tolist() for turn in again.turns]
    assert [turn.arrival for turn in first.turns] != [turn.arrival for turn in other.turns]


@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 1000), requests=st.integers(1, 120))
def test_every_trace_can_be_played(kind: str, seed: int, requests: int) -> None:
    """As many turns as were asked for, keys for each full block, and nobody follows who comes later."""
    trace = KINDS[kind](requests=requests).trace(seed)

    assert len(trace.turns) == requests
    for position, turn in enumerate(trace.turns):
        blocks = turn.input_tokens // trace.block_tokens
        assert blocks <= len(turn.keys) <= (turn.input_tokens + turn.output_tokens) // trace.block_tokens
        assert turn.follows is None or turn.follows < position
        assert turn.output_tokens >= 1


def test_uniform_prompts_share_nothing() -> None:
    """Nothing to hit."""
    assert bounds_of(KINDS["uniform"](requests=300).trace(1), cache_tokens=10_000_000).ideal_share == 0.0


def test_everybody_shares_a_system_prompt() -> None:
    """Most of the tokens are those of a few prompts."""
    assert bounds_of(KINDS["shared-prompt"](requests=500).trace(1), cache_tokens=10_000_000).ideal_share > 0.7


def test_a_conversation_brings_its_answers_along() -> None:
    """What a worker wrote is part of the next prompt, and known by the same keys."""
    trace = KINDS["multi-turn"](requests=300).trace(1)
    pairs = [(trace.turns[turn.follows], turn) for turn in trace.turns if turn.follows is not None]

    assert len(pairs) > 100
    for before, after in pairs:
        shared = (before.input_tokens + before.output_tokens) // trace.block_tokens
        assert after.keys.tolist()[:shared] == before.keys.tolist()[:shared]
        assert after.session == before.session


def test_documents_recur_behind_different_ones() -> None:
    """Only what is in front is shared: the ideal is far below the share of popular documents."""
    share = bounds_of(KINDS["rag"](requests=800).trace(1), cache_tokens=100_000_000).ideal_share

    assert 0.05 < share < 0.5


def test_an_agents_context_is_summarised_before_it_is_too_long() -> None:
    """What follows begins as the session did, and then with something new."""
    trace = KINDS["agents"](requests=400, context_tokens=20_000).trace(1)  # type: ignore[call-arg]
    cut = [
        turn
        for turn in trace.turns
        if turn.follows is not None and turn.input_tokens < trace.turns[turn.follows].input_tokens
    ]

    assert cut
    for turn in cut:
        before = trace.turns[turn.follows or 0]
        assert turn.keys[0] == before.keys[0]
        assert turn.keys.tolist() != before.keys.tolist()[: len(turn.keys)]


def test_parameters_are_read() -> None:
    """KIND:NAME=VALUE,..."""
    made = parse_synthetic("agents:rate=2.5,requests=70")

    assert (made.kind, made.rate, made.requests) == ("agents", 2.5, 70)
    assert parse_synthetic("uniform") == KINDS["uniform"]()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chat", "known: shared-prompt, multi-turn, agents, rag, uniform"),
        ("agents:speed=1", "it has requests=, rate="),
        ("agents:rate", "it has requests=, rate="),
        ("agents:rate=fast", "rate is 'fast'; a number is needed"),
        ("agents:requests=1.5", "requests is '1.5'; a whole number is needed"),
        ("agents:rate=0", "rate is 0; it must be above 0"),
        ("agents:rate=nan", "rate is nan; it must be above 0"),
        ("uniform:prompt_tokens=99999999", "at most 16777216"),
    ],
)
def test_wrong_parameters_are_named(text: str, said: str) -> None:
    """And so are the right ones."""
    with pytest.raises(SettingsError) as caught:
        parse_synthetic(text)

    assert said in str(caught.value)
