"""A tokenizer's pieces are exact: cut or whole, a text has the same tokens."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from kvrouter.blocks import token_bytes
from kvrouter.errors import SettingsError
from kvrouter.service.prompts.text_tokenizer import TextTokenizer, TokenizerError
from tests.prompts.models import KINDS, save_model, tokenizer_of

_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "<s>", "</s>", "[INST]", "[CLS]", "[SEP]", "<|turn|>"),
    *("<|im_", "start|>", "<", "|>", "[", "]"),
)
_SPACES = [" ", "\n", "\n\n", "  ", "\r\n", "\u200b", "\u2581", "\u0120"]
_WORDS = ["user\n", "Hello, world!", "it's 12", "e\u0301", "你好", "🙂"]
_SNIPPETS = st.one_of(st.text(max_size=12), st.sampled_from([*_SPECIAL, *_SPACES, *_WORDS]))
TEXTS = st.lists(_SNIPPETS, max_size=12).map("".join)


def _loaded(kind: str) -> TextTokenizer:
    return TextTokenizer(tokenizer_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_anchor_that_is_taken_cuts_exactly(kind: str) -> None:
    """Whatever anchor is called safe, pieces tokenised alone give the tokens of the whole text."""
    tokenizer = _loaded(kind)
    # The many tokens for single bytes are all alike.
    anchors = [name for name in tokenizer.added_tokens if not name.startswith("<0x") and tokenizer.cut_before(name)]
    assert anchors

    @given(TEXTS)
    @settings(max_examples=60, deadline=None)
    def check(text: str) -> None:
        for anchor in anchors:
            tokenizer.anchor = anchor
            pieces = tokenizer.pieces(text)
            assert "".join(pieces) == text
            assert b"".join(map(tokenizer.encode, pieces)) == tokenizer.encode(text)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_around_a_text_is_found_out(kind: str) -> None:
    """Tokens before and after, put around the plain tokens, are what the tokenizer itself makes of any text."""
    tokenizer = _loaded(kind)
    around = tokenizer.around
    assert around is not None

    @given(TEXTS)
    @settings(max_examples=50, deadline=None)
    def check(text: str) -> None:
        assert around[0] + tokenizer.encode(text) + around[1] == tokenizer.encode(text, add_special_tokens=True)

    check()


def test_the_tokens_are_those_of_the_wheel() -> None:
    """Words are the ids that the tokenizer gives, as 32-bit integers."""
    plain = tokenizer_of("chatml")
    tokenizer = TextTokenizer(plain)
    text = "<|im_start|>user\nHello, world!<|im_end|>\n"

    assert tokenizer.encode(text) == token_bytes(plain.encode(text).ids)


def test_a_text_without_its_anchor_is_one_piece() -> None:
    """Cutting needs something to cut at."""
    tokenizer = _loaded("chatml")
    tokenizer.cut_before("<|im_start|>")

    assert tokenizer.pieces("plain") == ["plain"]
    assert tokenizer.pieces("") == [""]
    assert tokenizer.pieces("<|im_start|>a<|im_start|>b") == ["<|im_start|>a", "<|im_start|>b"]
    assert tokenizer.pieces("x<|im_start|>") == ["x", "<|im_start|>"]


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (AddedToken("<x>", normalized=True), "it is looked for in the normalised text"),
        (AddedToken("<x>", normalized=False, lstrip=True), "it takes the spaces before it"),
        (AddedToken("<x>", normalized=False, single_word=True), "it depends on its neighbours"),
        (AddedToken("xyz", normalized=False), "a whole-word token before it would notice the cut"),
        (AddedToken(" <x>", normalized=False), "a token before it may strip its space"),
        (AddedToken("<x<", normalized=False), "it may overlap itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokens_that_look_around_are_no_anchors(token: AddedToken, why: str) -> None:
    """A token whose finding depends on its surroundings is never cut before."""
    plain = tokenizer_of("chatml")
    plain.add_tokens([token])
    tokenizer = TextTokenizer(plain)

    assert not tokenizer.cut_before(token.content)
    assert tokenizer.anchor is None


@pytest.mark.parametrize("other", ["<|im_start|>user", "x<|im_start|>", "<<|im", "a<|"])
def test_an_anchor_that_another_token_could_take_from_is_not_safe(other: str) -> None:
    """The leftmost, longest token wins; then an anchor in the text is not always that token."""
    plain = tokenizer_of("chatml")
    plain.add_tokens([AddedToken(other, normalized=False)])

    assert not TextTokenizer(plain).cut_before("<|im_start|>")


def test_a_tokenizer_that_does_not_cut_at_its_tokens_is_caught_by_probes() -> None:
    """The rules are tried out: here added tokens are read as plain text, and a space joins what follows it."""
    plain = Tokenizer(BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(special_tokens=["<|turn|>"], initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(["a <|turn|> b"] * 20, trainer)
    assert TextTokenizer(plain).cut_before("<|turn|>")

    plain.encode_special_tokens = True
    tokenizer = TextTokenizer(plain)

    assert not tokenizer.cut_before("<|turn|>")
    assert tokenizer.pieces("a<|turn|>b") == ["a<|turn|>b"]


def test_truncation_and_padding_of_a_file_are_ignored() -> None:
    """Files carry settings of somebody's training run; prompts are neither cut nor filled up."""
    plain = tokenizer_of("chatml")
    plain.enable_truncation(4)
    plain.enable_padding(length=64)

    tokenizer = TextTokenizer(plain)

    assert len(tokenizer.encode("a b c d e f g h i j")) // 4 > 4
    assert len(tokenizer.encode("a")) // 4 == 1


def test_a_text_that_the_tokenizer_fails_on_is_an_error_of_ours() -> None:
    """Half a character is no text."""
    with pytest.raises(TokenizerError):
        _loaded("chatml").encode("\ud800")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Whoever set the path reads which file is wrong."""
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")

    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(SettingsError, match="missing"):
        TextTokenizer.load(tmp_path / "missing.json")


def test_a_saved_tokenizer_loads(tmp_path: Path) -> None:
    """What is loaded is what was saved."""
    folder = save_model(tmp_path, tokenizer_of("chatml"))

    loaded = TextTokenizer.load(folder / "tokenizer.json")

    assert loaded.encode("Hello") == _loaded("chatml").encode("Hello")
