"""JSON objects become messages, by the rules of Protobuf's JSON mapping (https://protobuf.dev/programming-guides/json/).

Says the same as `google.protobuf.json_format.ParseDict(..., ignore_unknown_fields=True)`, which a test holds it
against, several times faster: each message type is turned into a plan once. Well-known types are left to that module.
"""

import base64
import binascii
import math
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kvrouter.gateway.descriptors import Descriptors, Message
from kvrouter.gateway.well_known import is_well_known

__all__ = ["FieldValueError", "MessageReader", "message_reader"]

MessageReader: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], Message]
"""From a JSON object, and fields that are set beside it: keywords of the message's class."""
_Convert: TypeAlias = Callable[[Any], Any]

_INTEGERS: Final = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_FLOAT_MAX: Final = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
_NOT_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SHOWN_CHARACTERS = 40
_SKIP: Final = object()
"""What is to be left out: an enum's name that we do not know."""


class FieldValueError(ValueError):
    """A value does not fit its field; `path` leads to it from the outermost message."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def within(self, name: str) -> "FieldValueError":
        """Say in which field of the message around it."""
        self.path = name + ("" if not self.path or self.path.startswith("[") else ".") + self.path
        return self

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


class _Field(NamedTuple):
    name: str
    convert: _Convert
    oneof: str | None
    takes_null: bool


def message_reader(descriptors: Descriptors, descriptor: Descriptor) -> MessageReader:
    """Return what makes messages of one type from JSON objects; it raises FieldValueError."""
    kind = Descriptors.class_of(descriptor)
    read = _Readers(descriptors).object_reader(descriptor)

    def reader(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> Message:
        try:
            return kind(**read(values), **fixed)
        except FieldValueError:
            raise
        except (TypeError, ValueError, UnicodeError) as error:
            raise FieldValueError(str(error)) from None

    return reader


class _Readers:
    """Plans by message type, so that a type that contains itself has one."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._pool = descriptors.pool
        self._known: dict[str, _Convert] = {}

    def object_reader(self, descriptor: Descriptor) -> Callable[[Any], dict[str, Any]]:
        """Return what turns a JSON object into the keywords of a message's class."""
        plan: dict[str, _Field] = {}

        def read(values: Any) -> dict[str, Any]:
            if type(values) is not dict:
                raise FieldValueError(f"an object is expected, not {_shown(values)}")
            keywords: dict[str, Any] = {}
            for key, value in values.items():
                field = plan.get(key)
                if field is None or (value is None and not field.takes_null):
                    continue
                if field.name in keywords:
                    raise FieldValueError("given twice").within(field.name)
                try:
                    converted = field.convert(value)
                except FieldValueError as error:
                    raise error.within(field.name)  # noqa: B904 - the same error, told from further out
                if converted is not _SKIP:
                    keywords[field.name] = converted
            if choices:
                _refuse_two_of(choices, keywords)
            return keywords

        self._known[descriptor.full_name] = read
        for field in descriptor.fields:
            planned = self._field(field)
            plan[field.name] = plan[field.json_name] = planned
        choices = {planned.name: planned.oneof for planned in plan.values() if planned.oneof is not None}
        return read

    def _field(self, field: FieldDescriptor) -> _Field:
        oneof = field.containing_oneof
        is_choice = oneof is not None and len(oneof.fields) > 1
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            convert = self._map(entry)
        elif field.is_repeated:
            convert = _list_of(self._element(field))
        else:
            convert = self._single(field)
        takes_null = _has_null(field) and not field.is_repeated
        return _Field(field.name, convert, oneof.name if is_choice else None, takes_null)

    def _element(self, field: FieldDescriptor) -> _Convert:
        """How one of several values is converted; null is none of them, but where it has a meaning."""
        convert = self._single(field)
        if _has_null(field):
            return convert

        def read(value: Any) -> Any:
            if value is None:
                raise FieldValueError("null is expected in neither lists nor maps")
            return convert(value)

        return read

    def _single(self, field: FieldDescriptor) -> _Convert:
        """How one value is converted."""
        message = field.message_type
        if message is not None:
            return self._message(message)
        if field.enum_type is not None:
            return _enum_reader({value.name: value.number for value in field.enum_type.values})
        if field.type in _INTEGERS:
            return _integer_reader(*_INTEGERS[field.type])
        return _SCALARS[field.type]

    def _message(self, message: Descriptor) -> _Convert:
        if is_well_known(message):
            return _well_known_reader(Descriptors.class_of(message), self._pool)
        known = self._known.get(message.full_name)
        return known if known is not None else self.object_reader(message)

    def _map(self, entry: Descriptor) -> _Convert:
        key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
        read_key = _map_key_bool if key_field.type == FieldDescriptor.TYPE_BOOL else self._single(key_field)
        read_value = self._element(value_field)
        message = value_field.message_type
        # The class takes keywords for messages, but not for messages in maps.
        make = Descriptors.class_of(message) if message is not None and not is_well_known(message) else None

        def read(values: Any) -> dict[Any, Any]:
            if type(values) is not dict:
                raise FieldValueError(f"an object is expected, not {_shown(values)}")
            converted: dict[Any, Any] = {}
            for key, value in values.items():
                try:
                    one = read_value(value)
                    if one is not _SKIP:
                        converted[read_key(key)] = one if make is None else make(**one)
                except FieldValueError as error:
                    raise error.within(f"[{key[:_SHOWN_CHARACTERS]!r}]")  # noqa: B904 - as above
            return converted

        return read


def _list_of(read_one: _Convert) -> _Convert:
    def read(values: Any) -> list[Any]:
        if type(values) is not list:
            raise FieldValueError(f"a list is expected, not {_shown(values)}")
        converted = []
        for position, value in enumerate(values):
            try:
                one = read_one(value)
            except FieldValueError as error:
                raise error.within(f"[{position}]")  # noqa: B904 - the same error, told from further out
            if one is not _SKIP:
                converted.append(one)
        return converted

    return read


def _has_null(field: FieldDescriptor) -> bool:
    """Whether null is a value of a field, not the lack of one."""
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _well_known_reader(kind: type[Message], pool: Any) -> _Convert:
    def read(value: Any) -> Message:
        try:
            return json_format.ParseDict(value, kind(), ignore_unknown_fields=True, descriptor_pool=pool)
        except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
            raise FieldValueError(" ".join(str(error).split())) from None

    return read


def _integer_reader(least: int, most: int) -> _Convert:
    def read(value: Any) -> int:
        if type(value) is not int:
            value = _integer_from(value)
        if not least <= value <= most:
            raise FieldValueError(f"{_shown(value)} is not between {least} and {most}")
        number: int = value
        return number

    return read


def _integer_from(value: Any) -> int:
    """A whole number that is written as a float or as text; for both the mapping has a place."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and value.isascii() and value == value.strip() and "_" not in value:
        with suppress(ValueError):
            return int(value)
        with suppress(ValueError):
            number = float(value)
            if number.is_integer():
                return int(number)
    raise FieldValueError(f"a whole number is expected, not {_shown(value)}")


def _double(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise FieldValueError("the number is too large") from None
    if type(value) is str:
        if value in _NOT_NUMBERS:
            return _NOT_NUMBERS[value]
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise FieldValueError(f"a number is expected, not {_shown(value)}")


def _float(value: Any) -> float:
    number = _double(value)
    if math.isfinite(number) and abs(number) > _FLOAT_MAX:
        raise FieldValueError("the number is too large")
    return number


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise FieldValueError(f"true or false is expected, not {_shown(value)}")
    return value


def _map_key_bool(key: str) -> bool:
    if key not in ("true", "false"):
        raise FieldValueError("true or false is expected as a key")
    return key == "true"


def _text(value: Any) -> str:
    if type(value) is not str:
        raise FieldValueError(f"text is expected, not {_shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    try:
        encoded = _text(value).encode("ascii")
        return base64.b64decode(encoded.translate(_URL_SAFE) + b"=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, UnicodeError):
        raise FieldValueError("base64 is expected") from None


def _enum_reader(numbers: Mapping[str, int]) -> _Convert:
    as_integer = _integer_reader(-(2**31), 2**31 - 1)

    def read(value: Any) -> Any:
        if type(value) is str:
            number = numbers.get(value)
            if number is not None:
                return number
            try:
                value = int(value)
            except ValueError:
                return _SKIP
        return as_integer(value)

    return read


def _refuse_two_of(choices: Mapping[str, str | None], keywords: Mapping[str, Any]) -> None:
    taken: dict[str | None, str] = {}
    for name in keywords:
        oneof = choices.get(name)
        if oneof is not None and taken.setdefault(oneof, name) != name:
            raise FieldValueError(f"only one of {taken[oneof]} and {name} may be given").within(name)


def _shown(value: Any) -> str:
    """What kind of value was found; never the value itself: it may be a prompt."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number" if isinstance(value, float) else f"the number {str(value)[:_SHOWN_CHARACTERS]}"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SCALARS: Final[Mapping[int, _Convert]] = {
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_FLOAT: _float,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_STRING: _text,
    FieldDescriptor.TYPE_BYTES: _bytes,
}
