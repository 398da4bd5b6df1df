"""The byte vectors of tests/golden/native: frames of the native wire, and what they mean or why they are refused."""

import json
from pathlib import Path
from typing import Any

from kvrouter.events import Source
from kvrouter.events.digest import DigestRow
from kvrouter.events.envelope import Envelope

_FOLDER = Path(__file__).resolve().parent.parent / "golden" / "native"


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines()]


OLD = {f"1.0 {line['name']}": (bytes.fromhex(line["frame"]), line["envelope"]) for line in _lines("envelope-1.jsonl")}
"""Written by version 1.0, and of a version that is yet to come."""
WRITTEN = {line["name"]: (bytes.fromhex(line["frame"]), line["envelope"]) for line in _lines("envelope-1.1.jsonl")}
"""What this version writes, byte for byte."""
ACCEPTED = OLD | WRITTEN
REFUSED = {
    line["name"]: (bytes.fromhex(line["frame"]), line["reason"])
    for name in ("refused-1.jsonl", "refused-1.1.jsonl")
    for line in _lines(name)
}


def envelope_of(stated: dict[str, Any]) -> Envelope:
    """An accepted frame's meaning as a value."""
    major, minor = stated["version"]
    snapshot, digest = stated.get("snapshot"), stated.get("digest")
    return Envelope(
        source=Source(stated["worker"], stated["rank"]),
        incarnation=stated["incarnation"],
        sequence=stated["sequence"],
        timestamp=stated["time"],
        payload=bytes.fromhex(stated["batch"]),
        snapshot=None if snapshot is None else (snapshot[0], snapshot[1]),
        digest=None if digest is None else tuple(DigestRow(*row) for row in digest),
        version=(major, minor),
        unknown_fields=stated["unknown_fields"],
    )
