"""Arrays of token ids, read from JSON text by the core: what it reads is right, what it cannot read it leaves alone."""

import json
import random
from array import array
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.errors import RequestError
from kvrouter.service.prompts import PrefixCache, RequestReader
from kvrouter.service.prompts.prefix_cache import CachedPrompt

SPACES = st.text(" \n\t\r", max_size=3)
ids = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 200_000), st.integers(0, 2**32 - 1)), max_size=40)


def parse(text: bytes | bytearray | memoryview, start: int = 0) -> tuple[bytes, int] | None:
    """As the core does it."""
    return native_core.native.parse_token_array(text, start)


def expected(text: bytes, start: int) -> tuple[bytes, int] | None:
    """What the text is by Python's own reader, where it is an array of nothing but plain token ids."""
    try:
        value, end = json.JSONDecoder().raw_decode(text.decode("latin-1"), start)
    except ValueError:
        return None
    if type(value) is not list or not all(type(each) is int and 0 <= each < 2**32 for each in value):
        return None
    if b"-" in text[start:end]:
        return None  # "-0" is left to the general reader
    return array("I", value).tobytes(), end


@given(
    ids=ids, spaces=st.lists(SPACES, min_size=3, max_size=3), before=st.binary(max_size=9), after=st.binary(max_size=9)
)
@settings(max_examples=400, deadline=None)
def test_arrays_are_read_whatever_stands_around_them(
    ids: list[int], spaces: list[str], before: bytes, after: bytes
) -> None:
    """Any white space, any neighbours, and the end of the text at any distance."""
    comma = f"{spaces[0]},{spaces[1]}"
    text = f"[{spaces[2]}{comma.join(map(str, ids))}{spaces[0]}]".encode()

    assert parse(before + text + after, len(before)) == (array("I", ids).tobytes(), len(before) + len(text))


@given(st.text('[] ,0123456789-+.eE\n"x', max_size=40).map(str.encode), st.integers(0, 3))
@example(b"[00]", 0)
@example(b"[01]", 0)
@example(b"[0,]", 0)
@example(b"[,0]", 0)
@example(b"[ ]", 0)
@example(b"[-0]", 0)
@example(b"[4294967295]", 0)
@example(b"[4294967296]", 0)
@example(b"[99999999999999999999999999]", 0)
@example(b"[00000000001]", 0)
@example(b"[12345678]", 0)
@example(b"[123456789,01234567]", 0)
@example(b"[1 2]", 0)
@example(b"[1\x002]", 0)
@settings(max_examples=600, deadline=None)
def test_what_is_read_is_what_any_reader_would_read(text: bytes, start: int) -> None:
    """Of text made of the characters that matter, nothing is read wrong and nothing good is left."""
    assert parse(text, start) == expected(text, start)


def test_damaged_arrays_are_never_read_wrong() -> None:
    """One character of a good array replaced, removed, doubled, or the text cut: thousands of times."""
    numbers = random.Random(3)
    for _ in range(20_000):
        text = bytearray(json.dumps([numbers.choice([7, 150_000, 2**32 - 1, 12345678]) for _ in range(6)]).encode())
        at = numbers.randrange(len(text))
        match numbers.randrange(4):
            case 0:
                text[at] = numbers.choice(b"0123456789,[] -.e\x00\xff\xb0\xba")
            case 1:
                del text[at]
            case 2:
                text.insert(at, text[at])
            case _:
                del text[at:]

        assert parse(bytes(text)) == expected(bytes(text), 0), bytes(text)


def test_damage_is_seen_wherever_it_is() -> None:
    """In arrays of some thousand characters, which are read in pieces of 64 and 1024: at the seams too."""
    numbers = random.Random(4)
    for _ in range(3000):
        ids = [numbers.randrange(10 ** numbers.randrange(1, 8)) for _ in range(numbers.randrange(600))]
        text = bytearray(json.dumps(ids, separators=numbers.choice([(",", ":"), (", ", ":"), (" \n,", ":")])).encode())
        piece = numbers.choice([64, 1024])
        at = max(0, min(numbers.randrange(len(text)) // piece * piece + numbers.randrange(-2, 4), len(text) - 1))
        match numbers.randrange(5):
            case 0:
                text[at] = numbers.choice(b"0123456789,[] -.e\x00\xff\xb0\xba")
            case 1:
                del text[at]
            case 2:
                text[at:at] = numbers.choice(
                    [b"0", b"1", b"00", b"123456789", b",", b" ", b"4294967295", b"4294967296"]
                )
            case 3:
                text[at:at] = numbers.choice([b",0,", b",00,", b",,", b" 1 ", b"5" * numbers.randrange(20)])
            case _:
                del text[at:]

        assert parse(bytes(text)) == expected(bytes(text), 0), bytes(text)


def test_every_byte_but_digits_ends_a_number() -> None:
    """The search for the end of a number looks at eight bytes at once; none of 256 may fool it at any place."""
    for other in range(256):
        for length in range(1, 9):
            text = b"[" + b"1" * length + bytes([other]) + b"1]" + b"5" * 8

            assert parse(text) == expected(text, 0), text


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_contiguous_buffer_is_taken(kind: Any) -> None:
    """Bodies are bytes or views of them."""
    assert parse(kind(b"x[1,2]"), 1) == (array("I", [1, 2]).tobytes(), 6)


def test_nothing_is_read_beyond_the_text() -> None:
    """Every beginning of an array, in a buffer of just that length, is left alone."""
    text = b"[1234567, 12345678,123456789 ,0 ]"
    for length in range(len(text)):
        assert parse(bytes(text[:length])) is None
        assert parse(text[:length], length) is None
    assert parse(text, len(text) + 5) is None


def test_a_start_before_the_text_is_refused() -> None:
    """As are arguments of a wrong kind."""
    with pytest.raises(ValueError, match="start is -1"):
        parse(b"[1]", -1)
    with pytest.raises(TypeError):
        parse("[1]", 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes 2 arguments, not 1"):
        native_core.native.parse_token_array(b"[1]")  # type: ignore[call-arg]
    with pytest.raises(OverflowError):
        parse(b"[1]", 2**70)


def test_nothing_but_commas_is_not_worth_memory() -> None:
    """Room is made only where every comma can have its number."""
    assert parse(b"[" + b"," * 1_000_000 + b"]") is None


def test_a_long_array_is_read_while_other_threads_run() -> None:
    """Above 128 KiB the interpreter is free meanwhile; the result is the same."""
    tokens = [random.Random(5).randrange(150_000) for _ in range(200_000)]
    text = json.dumps(tokens).encode()

    assert parse(text) == parse(bytearray(text)) == (array("I", tokens).tobytes(), len(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"prompt":[5]}', (10, 13)),
        (b'{"prompt" \n:\t[5 ], "prompt": [6]}', (13, 17)),
        (b'{"promp": 1, "prompt": [7]}', (23, 26)),
        (b'{"prompt": "[1]"}', None),
        (b'{"x": "prompt", "prompt": [1]}', None),
        (b'{"prompt":', None),
        (b'{"prompt"', None),
        (b'{"prompt', None),
        (b'{"prompt":   ', None),
        (b'{"prompt":[', None),
        (b"", None),
    ],
)
def test_an_array_is_found_by_its_key(text: bytes, found: tuple[int, int] | None) -> None:
    """By the first mention of the key; if that one is something else, the general reader has to look."""
    whole = native_core.native.find_token_array(text, b'"prompt"')

    assert (whole and whole[1:]) == found
    assert native_core.native.find_token_array(text, b"") is None
    if found is not None:
        start, end = found
        assert whole == (*expected(text, start)[:1], start, end)  # type: ignore[index]


@given(
    tokens=st.lists(
        st.one_of(
            st.integers(0, 2**32 - 1).map(str),
            st.sampled_from(["-1", "-0", "4294967296", "1.0", "1e2", "null", "true", '"a"', "[1]", "01", "", "{}"]),
        ),
        max_size=6,
    ),
    odd=st.sampled_from(["", ' "model": 3,', ' "prompt": [3],', ' "x": {"prompt": [1, 2]},', " oops"]),
    after=st.sampled_from(["}", ', "stream": true}', ', "prompt": [5]}', ', "prompt": "t"}', "", "} x"]),
)
@settings(max_examples=400, deadline=None)
def test_bodies_are_read_and_refused_as_without_the_core(tokens: list[str], odd: str, after: str) -> None:
    """The same fields, the same tokens, the same errors with the same places in them."""
    pad = '"pad": "' + "p" * 4200 + '",'  # long enough for the reader that remembers pieces
    body = f'{{{pad}{odd} "prompt": [{", ".join(tokens)}]{after}'.encode()
    outcomes = []
    for present in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_core, "present", present)
            outcomes.append(_outcome(body))

    assert outcomes[0] == outcomes[1]


NAMES = st.sampled_from(
    [
        "model",
        "stream",
        "max_tokens",
        "prompt",
        "user",
        "cache_salt",
        "n",
        "stop",
        "prompt ",
        "a b",
        "",
        "é",
        "add_special_tokens",
    ]
)
TEXTS = st.sampled_from(['"m"', '""', '"a b"', '"é"', '"\\n"', '"\x01"', '"\x7f"', '"\\u0041"', '"[1]"', '"x'])
NUMBERS = st.sampled_from(
    [
        "0",
        "16",
        "-0",
        "-1",
        "01",
        "1.5",
        "1.",
        ".5",
        "1e3",
        "1E+03",
        "1e999",
        "1e",
        "+1",
        "123456789012345678901",
        "9007199254740993",
    ]
)
LEAVES = st.one_of(
    TEXTS, NUMBERS, st.sampled_from(["true", "false", "null", "tru", "nulll", "[1, 2]", "[7,8 , 9]", "[]", "{}", ""])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]"),
        st.lists(st.tuples(NAMES, inner), max_size=3).map(
            lambda each: "{" + ",".join(f'"{name}":{value}' for name, value in each) + "}"
        ),
    ),
    max_leaves=6,
)


@given(
    fields=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    prompt=st.one_of(st.just("[5, 70000]"), VALUES),
    place=st.integers(0, 5),
    space=st.sampled_from(["", " ", "\n\t", "\x0b"]),
    end=st.sampled_from(["}", "} ", ",}", "", "}}", "} x"]),
)
@settings(max_examples=600, deadline=None)
def test_bodies_of_the_usual_form_are_read_as_by_the_general_reader(
    fields: list[tuple[str, str]], prompt: str, place: int, space: str, end: str
) -> None:
    """Whatever fields they have, twice or damaged: what is read in one go is what is read field by field."""
    fields.insert(place, ("prompt", prompt))
    body = ("{" + f"{space},".join(f'{space}"{name}"{space}:{space}{value}' for name, value in fields) + end).encode()
    outcomes = []
    for present in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_core, "present", present)
            outcomes.append(_outcome(body))

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (b'{"prompt":[1]}', (b"\1\0\0\0", None, False, None)),
        (b' {"model": "m" , "prompt" : [ 1 ], "stream": true,"max_tokens":7} ', (b"\1\0\0\0", "m", True, 7)),
        (
            b'{"prompt":[1],"stream_options":{"include_usage":true},"stop":["a",[]],"n":-1.5e-03}',
            (b"\1\0\0\0", None, False, None),
        ),
        (b'{"prompt":[1],"user":"u"}', None),
        (b'{"prompt":[1],"prompt":[1]}', None),
        (b'{"prompt":[1],"stream":null}', None),
        (b'{"prompt":[]}', None),
        (b'{"prompt":"[1]"}', None),
        (b'{"input":[1]}', None),
        (b'{"prompt":[1],"x":' + b"[" * 30 + b"]" * 30 + b"}", None),
        (b"", None),
    ],
)
def test_only_the_usual_form_is_read_in_one_go(text: bytes, read: object) -> None:
    """Everything else is left to the general reader, and so is every beginning of a text."""
    watched = b" cache_salt user "
    assert native_core.native.read_token_body(text, b"prompt", watched) == read
    for length in range(len(text.rstrip())):
        assert native_core.native.read_token_body(text[:length], b"prompt", watched) is None
    with pytest.raises(TypeError):
        native_core.native.read_token_body(text, b"prompt")  # type: ignore[call-arg]


def _outcome(body: bytes) -> object:
    try:
        read = RequestReader(PrefixCache(1 << 20)).read("/v1/completions", body)
    except RequestError as error:
        return error.status, error.message, error.code, error.param
    words = CachedPrompt(PrefixCache(0), read.nodes, read.words).token_ids
    return (
        read.kind,
        read.model,
        read.stream,
        read.max_tokens,
        read.cache_salt,
        read.session,
        read.batch,
        read.text,
        words,
    )
