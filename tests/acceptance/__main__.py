"""`python -m tests.acceptance`: write docs/acceptance.md, and say what is wrong with the table.

Rows that have a proof by now are not marked as pending any more afterwards.
"""

import sys

from tests.acceptance.page import PAGE, Proofs, faults, render
from tests.acceptance.table import read_parts, take_marks_away


def main() -> int:
    """Write the page; 1 where the table has faults."""
    proofs = Proofs()
    take_marks_away([row.number for part in read_parts() for row in part.rows if proofs.stands(row)])
    parts = read_parts()
    PAGE.write_text(render(parts, proofs), encoding="utf-8")
    found = faults(parts, proofs)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
