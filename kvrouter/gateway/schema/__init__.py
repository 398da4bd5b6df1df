"""What services of the shipped routes speak: `services.proto`, and the same compiled (`services.binpb`).

The descriptor set is made by `python -m kvrouter.gateway.schema.compile`, which needs grpcio-tools; running needs
the protobuf package alone. A test compiles the source again and compares.
"""

from pathlib import Path
from typing import Final

__all__ = ["SHIPPED_ROUTES", "SHIPPED_SET", "SHIPPED_SOURCE"]

SHIPPED_SOURCE: Final = Path(__file__).with_name("services.proto")
SHIPPED_SET: Final = Path(__file__).with_name("services.binpb")
SHIPPED_ROUTES: Final = Path(__file__).with_name("routes.toml")
