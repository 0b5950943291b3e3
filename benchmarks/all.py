"""All benchmarks, or the rows named: `python benchmarks/all.py [ROW...]`; `make bench ROWS="rename cast"`.

Each row is a script of this folder that says one JSON line. The lines go to docs/performance.json, beside what it has
of other rows; the table in docs/performance.md and the pictures are drawn from there. A row that fails stops no other.
BENCH_DATA names a folder with 30 GB free for checkpoints, BENCH_DOCS another for results, BENCH_REPETITIONS how often
each job is measured (3), BENCH_SMALL makes everything tiny, BENCH_AGAIN repeats slow peers that were measured before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _answer import RECORDS
from _table import page

HERE = Path(__file__).parent
ROWS = (
    "rename", "scale", "cast", "experts", "compare", "compare_eps", "inspect", "check_20k", "mixture", "phlora",
    "rewrite", "rewrite_llama", "merge", "orbax", "web", "sweep",
)  # fmt: skip
EMPTY = "# Performance\n\n<!-- bench: begin -->\n<!-- bench: end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run benchmarks and record what they say.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which (default: all): {', '.join(ROWS)}")
    parser.add_argument("--no-plots", action="store_true", help="draw no pictures, which needs matplotlib")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.rows) - set(ROWS)):
        parser.error(f"there is no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    failed = [row for row in chosen.rows or ROWS if not _run(row)]
    if not chosen.no_plots:
        from _plots import draw

        draw(_recorded(), RECORDS)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(row: str) -> bool:
    """Run one row and record what it says, so that a suite that is stopped keeps what it has."""
    print(f"{row} ...", file=sys.stderr, flush=True)
    script = next(path for path in (HERE / f"{row}.py", HERE / f"{row}_.py") if path.exists())
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return False
    print(done.stdout, end="", flush=True)
    record(json.loads(done.stdout))
    return True


def record(found: dict[str, Any]) -> None:
    """Put a row's record in the place of an earlier one, and draw the table anew."""
    rows = _recorded() | {found["row"]: found}
    ordered = {row: rows[row] for row in ROWS if row in rows}
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / "performance.json").write_text(json.dumps({"schema_version": 1, "rows": ordered}, indent=1) + "\n")
    text = RECORDS / "performance.md"
    text.write_text(page(text.read_text() if text.exists() else EMPTY, ordered))


def _recorded() -> dict[str, Any]:
    path = RECORDS / "performance.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


if __name__ == "__main__":
    main()
