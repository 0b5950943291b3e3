"""Write the tables of docs/audit.md: `python -m tests.auditing.write`, or `make audit`. It takes some minutes."""

from __future__ import annotations

from pathlib import Path

from tests.auditing.forty_three import table
from tests.auditing.sweep import sweep_all, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


def between(text: str, mark: str) -> str:
    """What stands between the marks of a page."""
    return text.partition(f"<!-- {mark}:begin -->\n")[2].partition(f"\n<!-- {mark}:end -->")[0]


def put_between(text: str, mark: str, made: str) -> str:
    """The page with something else between its marks."""
    head, begin, rest = text.partition(f"<!-- {mark}:begin -->\n")
    _, end, tail = rest.partition(f"\n<!-- {mark}:end -->")
    assert begin and end, f"docs/audit.md has no marks {mark}:begin and {mark}:end"
    return f"{head}{begin}{made}{end}{tail}"


def main() -> None:
    """Write both tables."""
    text = put_between(PAGE.read_text(encoding="utf-8"), "forty-three", table())
    PAGE.write_text(put_between(text, "sweep", tables(sweep_all())), encoding="utf-8")


if __name__ == "__main__":
    main()
