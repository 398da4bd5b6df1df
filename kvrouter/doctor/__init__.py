"""`kvrouter doctor`: says in words what is wrong with a running deployment, and what to do. It changes nothing."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kvrouter.asking import add_router_arguments, ask_router, router_address
from kvrouter.doctor.findings import Finding, Severity, examine
from kvrouter.errors import KvrouterError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add `doctor`."""
    doctor = subparsers.add_parser(
        "doctor",
        help="say in words what is wrong with a running deployment",
        description="Asks a running router about itself, its workers and their events, and says what to do.",
        epilog="Exit codes: 0 nothing to mend, 1 something is wrong or the router does not answer, 2 wrong call.",
    )
    add_router_arguments(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON array of findings")
    doctor.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 if one of them asks for something to be done.

    Raises:
        SettingsError: the URL is not one of HTTP.
        KvrouterError: the router did not answer, or refused, or is of another version.
    """
    address, api_key = router_address(arguments.url), arguments.api_key
    readiness = ask_router(f"{address}/readyz", api_key, allowed=(503,))
    workers, sources = (ask_router(f"{address}/{path}", api_key) for path in ("workers", "sources"))
    try:
        findings = examine(readiness, workers, sources)
    except (KeyError, TypeError, AttributeError) as error:
        text = f"{address} does not answer as this version expects ({error!r}); is it a kvrouter of the same version?"
        raise KvrouterError(text) from None
    text = (
        json.dumps([asdict(finding) for finding in findings]) if arguments.json else _text(findings, workers, sources)
    )
    sys.stdout.write(text + "\n")
    return int(any(finding.severity != Severity.NOTE for finding in findings))


def _text(findings: Sequence[Finding], workers: Sequence[Any], sources: Sequence[Any]) -> str:
    heard = [source for source in sources if source["endpoint"]]
    live = sum(source["state"] == "live" for source in heard)
    lines = [f"workers: {len(workers)} · event sources: {len(heard)}, of which live: {live}"]
    for finding in findings:
        lines += [f"{finding.severity:<8}{finding.about}: {finding.what}", f"        -> {finding.remedy}"]
    if not findings:
        lines.append("nothing is wrong")
    return "\n".join(lines)
