"""A prompt is hashed once per block size, and knows where its hashes come from."""

import numpy as np
import pytest

from kvrouter.blocks import Prompt, sequence_hashes

pytestmark = pytest.mark.usefixtures("implementation")


def test_a_prompt_hashes_as_its_tokens_do() -> None:
    """For every block size, with salt and adapter."""
    prompt = Prompt(list(range(100)), salt=b"tenant", lora="adapter")

    for size in (1, 16, 64, 128):
        expected = sequence_hashes(list(range(100)), size, salt=b"tenant", lora="adapter").tolist()
        assert prompt.hash_list(size) == expected
        assert prompt.hashes(size).tolist() == expected
    assert prompt.hashes(16).dtype == np.uint64


def test_a_prompt_is_hashed_once() -> None:
    """The second request for the same block size gets the same list."""
    prompt = Prompt([1, 2, 3, 4])

    assert prompt.hash_list(2) is prompt.hash_list(2)


def test_a_prompt_keeps_what_it_was_made_of() -> None:
    """Tokens are given back as they came; length, salt and adapter are known."""
    ids = [5, 6, 7]

    prompt = Prompt(ids, salt=b"s", lora="l")

    assert prompt.token_ids is ids
    assert (prompt.tokens, prompt.salt, prompt.lora, prompt.exact, prompt.block_size) == (3, b"s", "l", True, None)


def test_wrong_tokens_are_refused_at_once() -> None:
    """Not later, when somebody asks for hashes."""
    with pytest.raises(ValueError, match=r"token_ids\[0\] is -1"):
        Prompt([-1])


@pytest.mark.parametrize("hashes", [[1, 2, 2**64 - 1], np.array([1, 2, 2**64 - 1], dtype=np.uint64)])
def test_given_hashes_are_for_one_block_size(hashes: list[int]) -> None:
    """For another block size nothing is known."""
    prompt = Prompt.from_hashes(hashes, block_size=16, tokens=50, exact=False)

    assert prompt.hash_list(16) == [1, 2, 2**64 - 1]
    assert prompt.hashes(16).tolist() == [1, 2, 2**64 - 1]
    assert prompt.hashes(32).tolist() == []
    assert (prompt.tokens, prompt.exact, prompt.block_size) == (50, False, 16)


def test_more_hashes_than_tokens_are_refused() -> None:
    """A promise must not exceed the prompt."""
    with pytest.raises(ValueError, match="3 hashes of 16 tokens are more than the prompt's 47 tokens"):
        Prompt.from_hashes([1, 2, 3], block_size=16, tokens=47)
    with pytest.raises(ValueError, match="block_size is 0"):
        Prompt.from_hashes([], block_size=0, tokens=0)
    with pytest.raises(ValueError, match="longer than"):
        Prompt.from_hashes([1], block_size=16, tokens=2**41)
