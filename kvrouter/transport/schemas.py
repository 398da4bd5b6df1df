"""The planes' JSON messages as others need them: one JSON Schema to generate classes from, and models of Pydantic.

The canonical types are the structures that this package itself reads and writes; both forms are made of them. The
schema is kept as docs/planes.schema.json, which `python -m kvrouter.transport.schemas` prints. Not for hot paths.
"""

import json
import operator
import sys
import types
from functools import reduce
from typing import Any, Final, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel, Field, create_model

from kvrouter.discovery.records import InstanceRecord
from kvrouter.transport.callhome_wire import CallHomeInfo, ConnectionInfoRecord, Handshake, Prologue
from kvrouter.transport.messages import ErrorRecord, RequestControl
from kvrouter.transport.tcp_frames import Hello, HelloAck

__all__ = ["MESSAGES", "message_schemas", "pydantic_models", "schema_text"]

MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = (
    RequestControl,
    ConnectionInfoRecord,
    CallHomeInfo,
    Handshake,
    Prologue,
    ErrorRecord,
    Hello,
    HelloAck,
    InstanceRecord,
)
_REFERENCE = "#/$defs/"


def message_schemas() -> dict[str, Any]:
    """One JSON Schema (2020-12) with every message, and what they consist of, under `$defs`."""
    _, found = msgspec.json.schema_components(MESSAGES, ref_template=_REFERENCE + "{name}")
    definitions = {name.lstrip("_"): _renamed(schema) for name, schema in sorted(found.items())}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions}


def schema_text() -> str:
    """The schema as it is kept."""
    return json.dumps(message_schemas(), indent=2) + "\n"


def pydantic_models() -> dict[str, type[BaseModel]]:
    """The same messages as models of Pydantic, by name; members that nobody knows are ignored, as everywhere here."""
    known: dict[type[msgspec.Struct], type[BaseModel]] = {}
    for message in MESSAGES:
        _model(message, known)
    return {model.__name__: model for model in known.values()}


def _renamed(schema: Any) -> Any:
    """Names of parts without the underscore that they have here."""
    if isinstance(schema, dict):
        return {
            key: value.replace(f"{_REFERENCE}_", _REFERENCE)
            if key == "$ref"
            else value.lstrip("_")
            if key == "title"
            else _renamed(value)
            for key, value in schema.items()
        }
    return [_renamed(each) for each in schema] if isinstance(schema, list) else schema


def _model(struct: type[msgspec.Struct], known: dict[type[msgspec.Struct], type[BaseModel]]) -> type[BaseModel]:
    if struct not in known:
        members: dict[str, Any] = {
            field.name: (_annotation(field.type, known), _default(field)) for field in msgspec.structs.fields(struct)
        }
        known[struct] = create_model(struct.__name__.lstrip("_"), **members)
    return known[struct]


def _annotation(kind: Any, known: dict[type[msgspec.Struct], type[BaseModel]]) -> Any:
    """A type with models where it has structures."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _model(kind, known)
    parts = tuple(_annotation(part, known) for part in get_args(kind))
    if get_origin(kind) in (types.UnionType, Union):
        return reduce(operator.or_, parts)
    return list[parts[0]] if get_origin(kind) is list else kind  # type: ignore[valid-type] # known only here


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.required:
        return ...
    if field.default_factory is not msgspec.NODEFAULT:
        return Field(default_factory=field.default_factory)
    return field.default


if __name__ == "__main__":
    sys.stdout.write(schema_text())
