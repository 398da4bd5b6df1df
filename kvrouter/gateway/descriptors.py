"""Message types from a compiled descriptor set, as `protoc --include_imports --descriptor_set_out` writes it.

Nothing is generated and nothing is compiled here: the protobuf package makes classes of descriptors while running.
"""

from pathlib import Path
from typing import Any

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.gateway.schema import SHIPPED_SET

try:
    from google.protobuf import descriptor_pb2, message_factory
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import DecodeError, Message
except ImportError as error:
    raise MissingExtraError("the gateway", "gateway") from error

__all__ = ["Descriptor", "Descriptors", "Message", "load_descriptors"]

_MESSAGE_TYPE = 4  # Of FileDescriptorProto.message_type, DescriptorProto.field and so on: they are parts of a path.
_NESTED_TYPE, _ENUM_IN_MESSAGE, _FIELD = 3, 4, 2


class Descriptors:
    """The types of one descriptor set."""

    def __init__(self, files: "descriptor_pb2.FileDescriptorSet", source: str) -> None:
        self.pool = DescriptorPool()
        self.comments: dict[str, str] = {}
        """What stands before a message or field in its source, by full name; only if the set has source info."""
        self._source = source
        for file in files.file:
            self.pool.AddSerializedFile(file.SerializeToString())
            self.comments.update(_comments(file))

    def find(self, name: str) -> Descriptor:
        """Return a message type by its full name.

        Raises:
            SettingsError: the set has none of that name.
        """
        try:
            return self.pool.FindMessageTypeByName(name)
        except KeyError:
            raise SettingsError(f"{self._source} has no message type {name!r}") from None

    @staticmethod
    def class_of(descriptor: Descriptor) -> type[Message]:
        """Return the class whose instances are messages of a type."""
        found: type[Message] = message_factory.GetMessageClass(descriptor)
        return found


def load_descriptors(path: Path | None) -> Descriptors:
    """Read a descriptor set; None: the one that is shipped.

    Raises:
        SettingsError: the file is missing, is no descriptor set, or lacks a file that another one imports.
    """
    source = SHIPPED_SET if path is None else path
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(source.read_bytes())
    except OSError as error:
        raise SettingsError(f"descriptor set {source}: cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise SettingsError(f"descriptor set {source}: not what protoc --descriptor_set_out writes") from None
    if not files.file:
        raise SettingsError(f"descriptor set {source}: has no file in it")
    try:
        return Descriptors(files, f"descriptor set {source}")
    except TypeError as error:  # An import that is not there, or a definition that clashes with another one.
        reason = " ".join(str(error).split())
        raise SettingsError(f"descriptor set {source}: {reason}; was it written with --include_imports?") from None


def _comments(file: Any) -> dict[str, str]:
    """The leading comments of messages and fields."""
    names: dict[tuple[int, ...], str] = {}
    for position, message in enumerate(file.message_type):
        _name_parts(message, (_MESSAGE_TYPE, position), file.package, names)
    return {
        names[path]: " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments and (path := tuple(location.path)) in names
    }


def _name_parts(message: Any, path: tuple[int, ...], scope: str, names: dict[tuple[int, ...], str]) -> None:
    full_name = f"{scope}.{message.name}" if scope else message.name
    names[path] = full_name
    for position, field in enumerate(message.field):
        names[(*path, _FIELD, position)] = f"{full_name}.{field.name}"
    for position, enum in enumerate(message.enum_type):
        names[(*path, _ENUM_IN_MESSAGE, position)] = f"{full_name}.{enum.name}"
    for position, nested in enumerate(message.nested_type):
        _name_parts(nested, (*path, _NESTED_TYPE, position), full_name, names)
