"""What a router predicts of its own choices: how long a guess counts, for whom, and when it ends."""

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing import Router
from tests.routing.fleets import fleet, prompt_of, stored


def test_siblings_of_a_burst_follow_the_first() -> None:
    """Before any event could tell: the choice itself predicts the blocks."""
    router = fleet("a", "b", "c", "d")
    first = router.route(prompt_of(1, tokens=8192) + prompt_of(10), now=0.0)

    siblings = [router.route(prompt_of(1, tokens=8192) + prompt_of(number), now=0.001) for number in range(20, 24)]

    assert {each.worker_id for each in siblings} == {first.worker_id}
    assert {each.overlap_tokens for each in siblings} == {8192}
    assert {each.confirmed_tokens for each in siblings} == {0}


def test_predictions_continue_what_is_confirmed() -> None:
    """The overlap is the longer of both, and the confirmed part is told apart."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1))
    first = router.route(prompt_of(1, 2), now=0.0)
    router.book.free(first.id)

    decision = router.decide(Prompt(prompt_of(1, 2, 3)), now=0.0)

    assert (decision.worker_id, decision.confirmed_tokens, decision.overlap_tokens) == ("a", 64, 128)


def test_predictions_end_soon_where_events_would_have_confirmed_them() -> None:
    """A-373: on a live rank an unconfirmed guess is gone after seconds, on one without events it stays for minutes."""
    router = fleet("live", "dark", predicted_seconds_live=5.0, predicted_seconds_unconfirmed=600.0)
    stored(router, "live", prompt_of(9))
    for pinned in (Source("live", 0), Source("dark", 0)):
        decision = router.decide(Prompt(prompt_of(1, 2)), pinned=pinned, now=0.0)
        router.commit(decision, id=pinned, now=0.0)

    def overlaps(now: float) -> dict[str, int]:
        router.expire(now)
        return {
            each.worker_id: each.overlap_tokens for each in router.decide(Prompt(prompt_of(1, 2)), now=now).candidates
        }

    assert overlaps(4.9) == {"live": 112, "dark": 112}
    assert overlaps(10.0) == {"live": 0, "dark": 112}
    assert overlaps(700.0) == {"live": 0, "dark": 0}
    assert len(router.knowledge) == 0


def test_predictions_begin_anew_when_events_begin() -> None:
    """Long-lived guesses do not outlast the arrival of the truth."""
    router = fleet("a")
    router.route(prompt_of(1), now=0.0)
    stored(router, "a", prompt_of(9))

    router.route(prompt_of(2), now=1.0)

    assert router.decide(Prompt(prompt_of(1)), now=1.0).overlap_tokens == 0
    assert router.decide(Prompt(prompt_of(2)), now=1.0).overlap_tokens == 48


def test_predictions_can_be_turned_off() -> None:
    """A lifetime of zero writes none."""
    router = fleet("a", predicted_seconds_unconfirmed=0.0)

    router.route(prompt_of(1), now=0.0)

    assert router.decide(Prompt(prompt_of(1)), now=0.0).overlap_tokens == 0


def test_a_prefix_in_use_stays_predicted() -> None:
    """Each use of an ageing prediction writes it again."""
    router = fleet("a", predicted_seconds_unconfirmed=100.0)

    for now in range(0, 1000, 50):
        router.route(prompt_of(1, 2), now=float(now))

    assert router.decide(Prompt(prompt_of(1, 2)), now=1000.0).overlap_tokens == 112


def test_prompts_known_by_bytes_match_their_like_only() -> None:
    """Hashes over request bytes never compare with events, but predict for each other."""
    router = fleet("a", "b")
    hashes = Prompt(prompt_of(1)).hash_list(16)
    stored(router, "a", prompt_of(1))
    bytewise = Prompt.from_hashes(hashes, block_size=16, tokens=70, exact=False)
    assert router.decide(bytewise, now=0.0).overlap_tokens == 0

    router.commit(router.decide(bytewise, pinned=Source("b", 0), now=0.0), id=1, now=0.0)
    router.book.free(1)

    decision = router.decide(Prompt.from_hashes(hashes, block_size=16, tokens=70, exact=False), now=0.0)
    assert (decision.worker_id, decision.overlap_tokens, decision.confirmed_tokens) == ("b", 64, 0)


def test_prompts_known_by_bytes_stay_predicted_where_events_come() -> None:
    """No event can ever confirm them, so they have the long lifetime."""
    router = fleet("a")
    stored(router, "a", prompt_of(9))
    hashes = Prompt(prompt_of(1)).hash_list(16)
    router.commit(
        router.decide(Prompt.from_hashes(hashes, block_size=16, tokens=70, exact=False), now=0.0), id=1, now=0.0
    )
    router.route(prompt_of(2), now=1.0)

    router.expire(100.0)

    again = Prompt.from_hashes(hashes, block_size=16, tokens=70, exact=False)
    assert router.decide(again, now=100.0).overlap_tokens == 64
    assert router.decide(Prompt(prompt_of(2)), now=100.0).overlap_tokens == 0


def test_predictions_of_other_block_sizes_are_kept_apart() -> None:
    """Workers with different block sizes each match by their own."""
    router = Router()
    router.add_worker("small", block_size=16, now=0.0)
    router.add_worker("large", block_size=64, now=0.0)
    for worker in ("small", "large"):
        pinned = Source(worker, 0)
        router.commit(router.decide(Prompt(prompt_of(1, 2)), pinned=pinned, now=0.0), id=worker, now=0.0)

    decision = router.decide(Prompt([*prompt_of(1, 2)[:100], 7, 7]), now=0.0)

    assert {each.worker_id: each.overlap_tokens for each in decision.candidates} == {"small": 96, "large": 64}
