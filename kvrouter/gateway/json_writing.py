"""Messages become JSON objects, with the names of the .proto file, and defaults written out.

Says the same as `google.protobuf.json_format.MessageToDict(..., preserving_proto_field_name=True,
always_print_fields_with_no_presence=True)`, which a test holds it against, several times faster. Well-known types are
left to that module.
"""

import base64
import math
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kvrouter.gateway.descriptors import Descriptors, Message
from kvrouter.gateway.well_known import is_well_known

__all__ = ["MessageWriter", "message_writer"]

MessageWriter: TypeAlias = Callable[[Message], dict[str, Any]]
_Convert: TypeAlias = Callable[[Any], Any]

_WIDE = (
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
)
"""Written as text: a JavaScript number cannot hold them."""
_NULL_VALUE = "google.protobuf.NullValue"


def message_writer(descriptors: Descriptors, descriptor: Descriptor) -> MessageWriter:
    """Return what makes JSON objects from messages of one type. They share parts: do not change them."""
    return _Writers(descriptors).object_writer(descriptor)


class _Writers:
    """Plans by message type, so that a type that contains itself has one."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._pool = descriptors.pool
        self._known: dict[str, MessageWriter] = {}

    def object_writer(self, descriptor: Descriptor) -> MessageWriter:
        """Return the writer of a type."""
        plan: dict[int, tuple[str, _Convert | None]] = {}
        defaults: dict[str, Any] = {}

        def write(message: Message) -> dict[str, Any]:
            values = defaults.copy()
            for field, value in message.ListFields():
                planned = plan.get(field.number)
                if planned is not None:
                    name, convert = planned
                    values[name] = value if convert is None else convert(value)
            return values

        self._known[descriptor.full_name] = write
        for field in descriptor.fields:
            convert = self._field(field)
            plan[field.number] = field.name, convert
            if _is_map(field):
                defaults[field.name] = {}
            elif field.is_repeated:
                defaults[field.name] = []
            elif not field.has_presence:
                default = field.default_value
                defaults[field.name] = default if convert is None else convert(default)
        return write

    def _field(self, field: FieldDescriptor) -> _Convert | None:
        if _is_map(field):
            return self._map(field.message_type)
        convert = self._single(field)
        if not field.is_repeated:
            return convert
        return list if convert is None else lambda values: [convert(value) for value in values]

    def _single(self, field: FieldDescriptor) -> _Convert | None:
        """How one value is converted; None: it stays as it is."""
        if field.message_type is not None:
            return self._message(field.message_type)
        if field.enum_type is not None:
            if field.enum_type.full_name == _NULL_VALUE:
                return _null
            names = {value.number: value.name for value in reversed(field.enum_type.values)}
            return lambda number: names.get(number, number)
        if field.type in _WIDE:
            return str
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return _double
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return _float
        return _base64 if field.type == FieldDescriptor.TYPE_BYTES else None

    def _message(self, message: Descriptor) -> _Convert:
        if message.full_name == "google.protobuf.Timestamp":
            return _timestamp
        if is_well_known(message):
            return self._well_known
        known = self._known.get(message.full_name)
        return known if known is not None else self.object_writer(message)

    def _well_known(self, message: Message) -> Any:
        return json_format.MessageToDict(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            descriptor_pool=self._pool,
        )

    def _map(self, entry: Descriptor) -> _Convert:
        is_bool = entry.fields_by_name["key"].type == FieldDescriptor.TYPE_BOOL
        convert = self._single(entry.fields_by_name["value"])

        def write(values: Any) -> dict[str, Any]:
            return {
                (str(key).lower() if is_bool else str(key)): value if convert is None else convert(value)
                for key, value in values.items()
            }

        return write


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _null(_: Any) -> None:
    return None


def _timestamp(message: Any) -> str:
    text: str = message.ToJsonString()
    return text


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _float(value: float) -> float | str:
    """The shortest number that is this one in 32 bits: 0.1 is not to become 0.10000000149011612."""
    if not math.isfinite(value):
        return _double(value)
    return next(
        (short for digits in range(6, 9) if _as_float(short := float(f"{value:.{digits}g}")) == value),
        float(f"{value:.9g}"),
    )


def _as_float(value: float) -> float | None:
    try:
        number: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return None
    return number
