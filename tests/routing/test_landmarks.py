"""Landmarks: which blocks of a prompt stand for the rest."""

from hypothesis import given
from hypothesis import strategies as st

from kvrouter.routing.landmarks import landmark_depth, landmarks, landmarks_within

LENGTHS = st.integers(min_value=0, max_value=5_000)


@given(LENGTHS)
def test_short_prompts_are_known_block_by_block(length: int) -> None:
    """Up to 64 blocks nothing is left out; beyond, far less is kept."""
    marks = landmarks(range(length))

    assert len(marks) == landmarks_within(length)
    if length <= 64:
        assert list(marks) == list(range(length))
    else:
        assert len(marks) <= 64 + length / 8


@given(LENGTHS)
def test_each_landmark_stands_at_its_depth(length: int) -> None:
    """The n-th landmark is the block that ends the first `landmark_depth(n)` blocks."""
    assert [landmark_depth(count) - 1 for count in range(1, landmarks_within(length) + 1)] == list(
        landmarks(range(length))
    )


@given(LENGTHS, LENGTHS)
def test_prompts_that_agree_share_the_landmarks_of_what_they_share(one: int, other: int) -> None:
    """Landmarks depend on the depth alone, not on how long the prompt is."""
    shared = landmarks_within(min(one, other))

    assert list(landmarks(range(one)))[:shared] == list(landmarks(range(other)))[:shared]


@given(LENGTHS)
def test_what_goes_unseen_is_bounded(blocks: int) -> None:
    """At most 7 blocks of a prefix up to 512, at most 31 of a longer one."""
    unseen = blocks - landmark_depth(landmarks_within(blocks))

    assert 0 <= unseen <= (0 if blocks <= 64 else 7 if blocks <= 512 else 31)
