"""JSON becomes messages and messages become JSON as Protobuf's own module does it, only faster (A-402)."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.gateway.descriptors import Descriptors
from kvrouter.gateway.json_reading import FieldValueError, message_reader
from kvrouter.gateway.json_writing import message_writer
from tests.gateway.every_type import every_descriptors, every_type

NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65),
    st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e20, 1e300, 3.5e38]),
)
WORDS = "|1|-5|1.5|1e3| 1|0x1|NaN|Infinity|-Infinity|true|aGk=|aGk|_-8|COLOUR_RED|PURPLE|2026-11-22T01:02:03Z|1.5s|a,bC"
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(WORDS.split("|")))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.sampled_from(
    sorted({name for field in every_type().fields for name in (field.name, field.json_name)} | {"unknown"})
)
OBJECTS = st.recursive(
    st.dictionaries(NAMES, ANYTHING, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["itself", "many", "byNumber", "by_number", "labels"]),
        st.one_of(inner, st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["1", "x", "-2"]), inner)),
        max_size=2,
    ),
    max_leaves=4,
)
GOOD: list[dict[str, Any]] = [
    {},
    {"a_double": 1, "a_float": 0.1, "an_int32": -5, "an_int64": "9007199254740993", "a_uint64": 2**64 - 1},
    {"aDouble": "NaN", "a_float": "-Infinity", "a_bool": True, "a_string": "é𝄞", "some_bytes": "_-8"},
    {"a_colour": "COLOUR_BLUE", "many_colours": ["COLOUR_RED", 5, 77], "colours": {"x": "COLOUR_RED", "y": 9}},
    {"itself": {"itself": {"many": [{"an_int32": 1}, {}]}}},
    {"maybe_int": 0, "maybe_string": "", "left": "x"},
    {"labels": {"a": "b"}, "by_number": {"1": {"a_string": "one"}, "-2": {}}, "by_truth": {"true": 1.5, "false": 2}},
    {"when": "2026-11-22T01:02:03.5Z", "how_long": "1.5s", "anything": {"a": [1, None, {"b": True}]}},
    {"a_value": None, "a_list": [1, "x", None], "wrapped_string": "w", "wrapped_int64": "5", "wrapped_bool": False},
    {"a_mask": "a,bC", "values": {"x": 1, "y": [None]}, "otherName": "here", "files": {"f": "aGk="}},
    {"an_int32": "1e3", "values": {"nothing": None}, "a_colour": "1"},
    {"an_int32": 5.0, "many_int64": ["1", 2, 3.0], "unknown": {"deep": 1}, "a_string": None},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"an_int32": 2**31}, "an_int32: "),
    ({"an_int32": 1.5}, "an_int32: a whole number is expected, not a number"),
    ({"a_bool": 1}, "a_bool: true or false is expected, not the number 1"),
    ({"a_string": 5}, "a_string: text is expected, not the number 5"),
    ({"itself": {"many": [{}, {"a_uint32": -1}]}}, "itself.many[1].a_uint32: the number -1 is not between 0 and"),
    ({"itself": []}, "itself: an object is expected, not a list"),
    ({"many": {}}, "many: a list is expected, not an object"),
    ({"labels": {"a": 5}}, "labels['a']: text is expected"),
    ({"by_number": {"x": {}}}, "by_number['x']: "),
    ({"many_strings": ["a", None]}, "many_strings[1]: null"),
    ({"left": "a", "right": 1}, "only one of left and right"),
    ({"some_bytes": "*"}, "some_bytes: base64 is expected"),
    ({"when": "yesterday"}, "when: "),
    ({"named": "a", "otherName": "b"}, "named: given twice"),
    ({"a_colour": True}, "a_colour: "),
]  # fmt: skip


def read_by_ours(values: dict[str, Any]) -> Any:
    """The message, or None if the values are refused."""
    reader = message_reader(every_descriptors(), every_type())
    try:
        return reader(values, {})
    except FieldValueError:
        return None


def read_by_theirs(values: dict[str, Any]) -> Any:
    """The same by Protobuf's own module."""
    message = Descriptors.class_of(every_type())()
    try:
        return json_format.ParseDict(
            values, message, ignore_unknown_fields=True, descriptor_pool=every_descriptors().pool
        )
    except (json_format.ParseError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def written_by_theirs(message: Any) -> dict[str, Any]:
    """The JSON object that Protobuf's own module makes."""
    written: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=every_descriptors().pool,
    )
    return written


@pytest.mark.parametrize("values", GOOD)
def test_good_values_are_read_and_written_as_by_protobuf(values: dict[str, Any]) -> None:
    """A-402, D-21: both directions, one example of every kind of field, with today's protobuf package."""
    message = read_by_ours(values)

    assert message is not None
    assert message == read_by_theirs(values) or str(message) == str(read_by_theirs(values))  # NaN is never equal.
    written = message_writer(every_descriptors(), every_type())(message)
    assert json.dumps(written, sort_keys=True) == json.dumps(written_by_theirs(message), sort_keys=True)


@pytest.mark.parametrize(("values", "problem"), BAD)
def test_what_does_not_fit_is_refused_by_its_path(values: dict[str, Any], problem: str) -> None:
    """A client reads where the mistake is; its values are not repeated, only small numbers."""
    with pytest.raises(FieldValueError) as caught:
        message_reader(every_descriptors(), every_type())(values, {})

    assert problem in str(caught.value)


@settings(max_examples=150)
@given(values=OBJECTS)
def test_any_object_is_read_as_by_protobuf_or_refused(values: dict[str, Any]) -> None:
    """What is read means the same, and is written the same; theirs also takes true for 1, and a list for an object."""
    ours, theirs = read_by_ours(values), read_by_theirs(values)

    if ours is not None:
        assert str(ours) == str(theirs)
        written = message_writer(every_descriptors(), every_type())(ours)
        assert json.dumps(written, sort_keys=True) == json.dumps(written_by_theirs(ours), sort_keys=True)


def test_fields_that_we_set_win_over_nothing_else() -> None:
    """Meta data are set beside the values of the client."""
    reader = message_reader(every_descriptors(), every_type())

    message = reader({"a_string": "theirs"}, {"itself": {"a_string": "ours"}})

    assert (message.a_string, message.itself.a_string) == ("theirs", "ours")


def test_a_number_of_32_bits_is_written_as_short_as_it_was() -> None:
    """0.1 does not become 0.10000000149011612."""
    message = read_by_ours({"a_float": 0.1, "a_double": 0.1})

    written = message_writer(every_descriptors(), every_type())(message)

    assert (written["a_float"], written["a_double"]) == (0.1, 0.1)
