"""One route's messages: a JSON object and meta data become bytes for a service, its bytes become JSON. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, EncodeError

from kvrouter.errors import GatewayError, SettingsError
from kvrouter.gateway.descriptors import Descriptor, Descriptors
from kvrouter.gateway.error_table import service_error
from kvrouter.gateway.json_reading import FieldValueError, message_reader
from kvrouter.gateway.json_writing import message_writer
from kvrouter.gateway.route_table import Route

__all__ = ["AnswerReader", "Chunk", "Translation"]

META, ERROR, FINAL = "meta", "error", "is_final"


class Chunk(NamedTuple):
    """One message of a stream, as JSON, and whether it is the last one."""

    values: dict[str, Any]
    is_final: bool


class AnswerReader:
    """Reads messages of one type that services send."""

    def __init__(self, descriptors: Descriptors, descriptor: Descriptor) -> None:
        self._parse = Descriptors.class_of(descriptor).FromString
        self._write = message_writer(descriptors, descriptor)
        self._name = descriptor.full_name

    def read(self, data: bytes) -> dict[str, Any]:
        """Return the message as a JSON object.

        Raises:
            GatewayError: the service says that it failed (its own status), or these bytes are no such message (502).
        """
        try:
            message = self._parse(data)
        except DecodeError:
            raise GatewayError(
                f"the service's answer is no {self._name}", status=502, code="INVALID_RESPONSE"
            ) from None
        values = self._write(message)
        told = values.get(ERROR)
        if told is not None:
            error = service_error(told)
            if error is not None:
                raise error
        return values

    def read_chunk(self, data: bytes) -> Chunk:
        """Return one message of a stream; raises as `read`."""
        values = self.read(data)
        return Chunk(values, bool(values[FINAL]))


class Translation:
    """What is spoken on one route."""

    def __init__(self, route: Route, descriptors: Descriptors) -> None:
        """Find the route's types.

        Raises:
            SettingsError: one is missing, or is not as the gateway needs it.
        """
        where = f"route {route.name}"
        self.request_type = descriptors.find(route.request)
        self.response_type = descriptors.find(route.response)
        self.stream_type = None if route.stream is None else descriptors.find(route.stream)
        self._meta = _meta_fields(self.request_type, where)
        _check_variables(route, self.request_type, where)
        _check_error(self.response_type, where)
        if self.stream_type is not None:
            _check_error(self.stream_type, where)
            _check_final(self.stream_type, where)
        self._read = message_reader(descriptors, self.request_type)
        self.answer = AnswerReader(descriptors, self.response_type)
        self.chunk = None if self.stream_type is None else AnswerReader(descriptors, self.stream_type)

    def request(self, values: Mapping[str, Any], meta: Mapping[str, Any]) -> bytes:
        """Return a request as bytes. `values` has no member `meta`: who asks is not the client's to say there.

        Raises:
            GatewayError: a value does not fit its field (400).
        """
        known = self._meta
        fixed = {META: {name: value for name, value in meta.items() if name in known}} if known else {}
        try:
            encoded: bytes = self._read(values, fixed).SerializeToString()
        except (FieldValueError, EncodeError) as error:
            raise GatewayError(str(error), status=400, code="INVALID_ARGUMENT") from None
        return encoded


def _meta_fields(request: Descriptor, where: str) -> frozenset[str]:
    """The fields of a request's meta data that we fill; none if it has no such member."""
    field = request.fields_by_name.get(META)
    if field is None:
        return frozenset()
    if field.message_type is None or field.is_repeated:
        raise SettingsError(f"{where}: {request.full_name}.{META} must be a message")
    return frozenset(each.name for each in field.message_type.fields)


def _check_variables(route: Route, request: Descriptor, where: str) -> None:
    for variable in route.variables:
        field = request.fields_by_name.get(variable)
        if field is None or field.is_repeated or field.message_type is not None:
            raise SettingsError(
                f"{where}: {request.full_name} has no single value {variable!r} for the path's variable"
            )


def _check_error(answer: Descriptor, where: str) -> None:
    field = answer.fields_by_name.get(ERROR)
    if field is None:
        return
    if field.message_type is None or field.is_repeated or "code" not in field.message_type.fields_by_name:
        raise SettingsError(f"{where}: {answer.full_name}.{ERROR} must be a message with a field `code`")


def _check_final(chunk: Descriptor, where: str) -> None:
    field = chunk.fields_by_name.get(FINAL)
    if field is None or field.type != field.TYPE_BOOL or field.is_repeated or field.has_presence:
        raise SettingsError(f"{where}: {chunk.full_name} must have a field `bool {FINAL}`, true in the last chunk")
