"""Compiles .proto files into the descriptor set that a gateway reads: `python -m kvrouter.gateway.schema.compile`.

Without arguments, the shipped schema, in place. With some, `-o SET.binpb FILE.proto ...`. Needs the package
grpcio-tools, which brings protoc. Not used at run time.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvrouter.errors import SettingsError
from kvrouter.gateway.schema import SHIPPED_SET, SHIPPED_SOURCE

__all__ = ["compile_schema", "main"]


def compile_schema(sources: Sequence[Path], target: Path) -> None:
    """Write the descriptors of `sources` and of all that they import, with their comments, to `target`.

    Raises:
        SettingsError: grpcio-tools is missing, or protoc refuses a source (it says why on standard error).
    """
    try:
        import grpc_tools  # noqa: PLC0415 - only where something is compiled
        from grpc_tools import protoc  # noqa: PLC0415 - as above
    except ImportError:
        raise SettingsError("compiling needs protoc: pip install grpcio-tools") from None
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    folders = dict.fromkeys(source.resolve().parent for source in sources)
    options = [f"-I{folder}" for folder in (*folders, well_known)]
    options += ["--include_imports", "--include_source_info", f"--descriptor_set_out={target}"]
    if protoc.main(["protoc", *options, *(str(source.resolve()) for source in sources)]) != 0:
        raise SettingsError(f"protoc refuses {', '.join(map(str, sources))}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what is named; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kvrouter.gateway.schema.compile", description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, metavar="FILE.proto")
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED_SET, metavar="SET.binpb")
    given = parser.parse_args(arguments)
    if given.sources and given.output == SHIPPED_SET:
        parser.error("name the set to write with -o")
    try:
        compile_schema(given.sources or [SHIPPED_SOURCE], given.output)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
