"""Active blocks count a shared prefix once, whoever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from kvrouter.routing.active_blocks import ActiveBlocks


def chain(path: list[int]) -> list[int]:
    """Hashes that name their whole prefix, as sequence hashes do."""
    return [hash(tuple(path[: end + 1])) for end in range(len(path))]


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), max_size=5)), max_size=40))
def test_distinct_blocks_are_those_of_the_union(steps: list[tuple[bool, list[int]]]) -> None:
    """Adding and discarding report exactly the change of the union of all prompts."""
    active = ActiveBlocks()
    held: list[list[int]] = []

    for add, path in steps:
        before = set().union(*held)
        if add or not held:
            held.append(chain(path))
            added = active.add(held[-1])
            assert added == len(set().union(*held)) - len(before)
        else:
            freed = active.discard(held.pop(len(path) % len(held)))
            assert freed == len(before) - len(set().union(*held))
        now = set().union(*held)
        assert len(active) == len(now)
        assert active.leading(chain(path)) == sum(key in now for key in chain(path))
