"""Which message types have a JSON form of their own (https://protobuf.dev/reference/protobuf/google.protobuf/)."""

from typing import Final

from google.protobuf.descriptor import Descriptor

__all__ = ["WELL_KNOWN", "is_well_known"]

WELL_KNOWN: Final = frozenset(
    f"google.protobuf.{name}"
    for name in (
        "Any", "BoolValue", "BytesValue", "DoubleValue", "Duration", "FieldMask", "FloatValue", "Int32Value",
        "Int64Value", "ListValue", "StringValue", "Struct", "Timestamp", "UInt32Value", "UInt64Value", "Value",
    )
)  # fmt: skip


def is_well_known(message: Descriptor) -> bool:
    """Whether messages of the type are not written as an object of their fields."""
    return message.full_name in WELL_KNOWN
