"""`python -m tests.acceptance`: write docs/acceptance.md, and say what is wrong with the table."""

import sys

from tests.acceptance.page import PAGE, Proofs, faults, render
from tests.acceptance.table import read_parts


def main() -> int:
    """Write the page; 1 where the table has faults."""
    parts, proofs = read_parts(), Proofs()
    PAGE.write_text(render(parts, proofs), encoding="utf-8")
    found = faults(parts, proofs)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
