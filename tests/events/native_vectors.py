"""The byte vectors of tests/golden/native: frames of the native wire, and what they mean or why they are refused."""

import json
from pathlib import Path
from typing import Any

from kvrouter.events import Source
from kvrouter.events.envelope import Envelope

_FOLDER = Path(__file__).resolve().parent.parent / "golden" / "native"


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines()]


ACCEPTED = {line["name"]: (bytes.fromhex(line["frame"]), line["envelope"]) for line in _lines("envelope-1.jsonl")}
REFUSED = {line["name"]: (bytes.fromhex(line["frame"]), line["reason"]) for line in _lines("refused-1.jsonl")}


def envelope_of(stated: dict[str, Any]) -> Envelope:
    """An accepted frame's meaning as a value."""
    major, minor = stated["version"]
    return Envelope(
        source=Source(stated["worker"], stated["rank"]),
        incarnation=stated["incarnation"],
        sequence=stated["sequence"],
        timestamp=stated["time"],
        payload=bytes.fromhex(stated["batch"]),
        version=(major, minor),
        unknown_fields=stated["unknown_fields"],
    )
