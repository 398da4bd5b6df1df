"""The shipped descriptor set is what its source says, and the shipped routes are those of the seed."""

import warnings
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from kvrouter.errors import SettingsError
from kvrouter.gateway.descriptors import load_descriptors
from kvrouter.gateway.route_table import load_routes
from kvrouter.gateway.schema import SHIPPED_SET, SHIPPED_SOURCE
from kvrouter.gateway.translation import Translation


def compiled(source: Path, folder: Path) -> Path:
    """Compile a source into a set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grpcio-tools imports a module of setuptools that is on its way out.
        from kvrouter.gateway.schema.compile import compile_schema  # noqa: PLC0415

        compile_schema([source], folder / "set.binpb")
    return folder / "set.binpb"


def files_of(path: Path) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The files of a set, by name."""
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file}


def test_the_shipped_set_is_its_source_compiled(tmp_path: Path) -> None:
    """When this fails: python -m kvrouter.gateway.schema.compile."""
    ours = files_of(SHIPPED_SET)["services.proto"]

    again = files_of(compiled(SHIPPED_SOURCE, tmp_path))["services.proto"]

    assert ours == again


def test_the_shipped_routes_are_those_of_the_seed() -> None:
    """A-411 to A-417: eight paths and their subjects; reading may also be by GET (D-20)."""
    found = {(route.path, route.methods): route.subject for route in load_routes(None)}

    assert found == {
        ("/ai/llm/infer", ("POST",)): "svc.ai.llm.v1.infer",
        ("/ai/models", ("POST", "GET")): "svc.ai.model.v1.list",
        ("/ai/models/{model_id}", ("POST", "GET")): "svc.ai.model.v1.get",
        ("/ai/models/{model_id}/select", ("POST",)): "svc.ai.model.v1.select",
        ("/state/update", ("POST",)): "svc.state.manager.v1.update",
        ("/state/get", ("POST",)): "svc.state.manager.v1.get",
        ("/quest/generate", ("POST",)): "svc.quest.v1.generate",
        ("/npc/behavior", ("POST",)): "svc.npc.behavior.v1.plan",
    }


def test_every_shipped_route_has_its_types() -> None:
    """The table, the set and the gateway's needs fit each other."""
    descriptors = load_descriptors(None)

    for route in load_routes(None):
        assert Translation(route, descriptors).request_type.full_name == route.request


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "has no file in it"), (b"\xff\xff\xff", "not what protoc --descriptor_set_out writes")],
)
def test_a_set_that_is_none_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    """A-433: compiled messages that are missing or broken are one sentence."""
    path = tmp_path / "set.binpb"
    path.write_bytes(content)

    with pytest.raises(SettingsError, match=problem):
        load_descriptors(path)


def test_a_set_without_its_imports_says_how_to_write_it(tmp_path: Path) -> None:
    """The usual mistake has its remedy in the text."""
    files = descriptor_pb2.FileDescriptorSet(file=[files_of(SHIPPED_SET)["services.proto"]])
    path = tmp_path / "set.binpb"
    path.write_bytes(files.SerializeToString())

    with pytest.raises(SettingsError, match="--include_imports"):
        load_descriptors(path)


def test_a_source_that_protoc_refuses_is_an_error(tmp_path: Path) -> None:
    """Protoc says why on standard error, we say of which file."""
    source = tmp_path / "broken.proto"
    source.write_text("syntax = 'proto3'; message {", encoding="utf-8")

    with pytest.raises(SettingsError, match=r"broken\.proto"):
        compiled(source, tmp_path)
