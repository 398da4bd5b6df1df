"""The OpenAPI document of the routes: paths from the table, schemas and words from the descriptors. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kvrouter.gateway.descriptors import Descriptors
from kvrouter.gateway.route_table import Route, RouteTable
from kvrouter.gateway.translation import META, Translation
from kvrouter.gateway.well_known import is_well_known
from kvrouter.transport.http_errors import STATUSES

__all__ = ["ERROR_SCHEMA", "describe_routes"]

Schema = dict[str, Any]

ERROR_SCHEMA: Final = "GatewayError"
_WIDE: Final = {"type": "string", "format": "int64"}
_SCALARS: Final[Mapping[int, Schema]] = {
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "format": "byte"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SINT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SFIXED32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "format": "int64", "minimum": 0},
    FieldDescriptor.TYPE_INT64: _WIDE,
    FieldDescriptor.TYPE_SINT64: _WIDE,
    FieldDescriptor.TYPE_SFIXED64: _WIDE,
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_FIXED64: {"type": "string", "format": "uint64"},
}
_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    "google.protobuf.Any": {"type": "object", "additionalProperties": True},
    "google.protobuf.BoolValue": {"type": ["boolean", "null"]},
    "google.protobuf.BytesValue": {"type": ["string", "null"], "format": "byte"},
    "google.protobuf.DoubleValue": {"type": ["number", "null"]},
    "google.protobuf.Duration": {"type": "string", "examples": ["1.5s"]},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.FloatValue": {"type": ["number", "null"]},
    "google.protobuf.Int32Value": {"type": ["integer", "null"]},
    "google.protobuf.Int64Value": {"type": ["string", "null"], "format": "int64"},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.StringValue": {"type": ["string", "null"]},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.UInt32Value": {"type": ["integer", "null"], "minimum": 0},
    "google.protobuf.UInt64Value": {"type": ["string", "null"], "format": "uint64"},
    "google.protobuf.Value": {},
}
_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "examples": sorted(STATUSES)},
                "message": {"type": "string"},
                "details": {},
            },
        }
    },
}
_HEADERS: Final = (
    ("X-Trace-ID", "Trace that the request is part of; `traceparent` does as well."),
    ("X-Client-ID", "Program that asks."),
    ("X-User-ID", "User for whom it asks."),
    ("X-Tenant-ID", "Tenant of that user."),
    ("Idempotency-Key", "The same key means the same request; a member `idempotency_key` of the body does as well."),
)


def describe_routes(
    document: Schema, table: RouteTable, translations: Mapping[str, Translation], descriptors: Descriptors
) -> Schema:
    """Add the routes to an OpenAPI document, and return it."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas[ERROR_SCHEMA] = _ERROR
    writer = _Schemas(schemas, descriptors.comments)
    for route in table:
        operations = document.setdefault("paths", {}).setdefault(route.path, {})
        for method in route.methods:
            operations[method.lower()] = _operation(route, method, translations[route.name], writer)
    return document


def _operation(route: Route, method: str, translation: Translation, writer: "_Schemas") -> Schema:
    parameters: list[Schema] = [
        {"name": variable, "in": "path", "required": True, "schema": {"type": "string"}} for variable in route.variables
    ]
    parameters += [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}} for name, text in _HEADERS
    ]
    answers: Schema = {"application/json": {"schema": writer.reference(translation.response_type)}}
    if translation.stream_type is not None:
        answers["text/event-stream"] = {"schema": writer.reference(translation.stream_type)}
    problem = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ERROR_SCHEMA}"}}}}
    operation: Schema = {
        "operationId": f"{method.lower()}_{route.name}",
        "summary": f"Asks {route.subject}",
        "tags": [route.path.split("/")[1]],
        "parameters": parameters,
        "responses": {"200": {"description": "What the service answers", "content": answers}}
        | {"default": {"description": "Why there is no answer"} | problem},
    }
    if method != "GET":
        body = writer.object_of(translation.request_type, without=(META, *route.variables))
        body["properties"]["idempotency_key"] = {"type": "string"}
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return operation


class _Schemas:
    """Schemas of message types, each written once."""

    def __init__(self, schemas: Schema, comments: Mapping[str, str]) -> None:
        self._schemas, self._comments = schemas, comments

    def reference(self, message: Descriptor) -> Schema:
        """Return where the schema of a type is, after writing it."""
        if is_well_known(message):
            return dict(_WELL_KNOWN[message.full_name])
        name = message.full_name
        if name not in self._schemas:
            self._schemas[name] = {}  # A type may contain itself.
            self._schemas[name].update(self.object_of(message))
        return {"$ref": f"#/components/schemas/{name}"}

    def object_of(self, message: Descriptor, without: tuple[str, ...] = ()) -> Schema:
        """Return the schema of a type, with all of its fields but some."""
        fields = {field.name: self._field(field) for field in message.fields if field.name not in without}
        return self._described({"type": "object", "properties": fields}, message.full_name)

    def _field(self, field: FieldDescriptor) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            value = self._single(message.fields_by_name["value"])
            return self._described({"type": "object", "additionalProperties": value}, field.full_name)
        schema = self._single(field)
        if field.is_repeated:
            schema = {"type": "array", "items": schema}
        return self._described(schema, field.full_name)

    def _single(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self.reference(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return dict(_SCALARS[field.type])

    def _described(self, schema: Schema, full_name: str) -> Schema:
        comment = self._comments.get(full_name)
        return schema if comment is None else {**schema, "description": comment}
