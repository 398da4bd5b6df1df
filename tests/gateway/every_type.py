"""The descriptors of `every_type.proto`, compiled when they are first asked for."""

import functools
import tempfile
import warnings
from pathlib import Path

from kvrouter.gateway.descriptors import Descriptor, Descriptors, load_descriptors

__all__ = ["EVERY", "every_descriptors", "every_type"]

EVERY = Path(__file__).with_name("every_type.proto")


@functools.cache
def every_descriptors() -> Descriptors:
    """Compile and load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grpcio-tools imports a module of setuptools that is on its way out.
        from kvrouter.gateway.schema.compile import compile_schema  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            compile_schema([EVERY], Path(folder) / "every.binpb")
            return load_descriptors(Path(folder) / "every.binpb")


def every_type() -> Descriptor:
    """The message type `every.Every`."""
    return every_descriptors().find("every.Every")
