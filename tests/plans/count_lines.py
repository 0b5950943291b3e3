"""How many lines a plan takes, and how many the script that does the same.

Counted are lines that hold code or YAML: imports, arguments and variables are, blank lines, comments and docstrings
not. Both are written to 120 columns. `python tests/plans/count_lines.py` prints the table; with
`--write` it goes into README.md, between its markers.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- lines:begin -->", "<!-- lines:end -->"
EXAMPLES = {
    "surgery_validated": "edit one head, validated by asserts",
    "bulk_regex": "bulk targeting by regex",
    "prefix_rewrite": "prefix rewrite",
    "diff_check": "end-to-end check by `diff`",
    "phlora_delta": "PHLoRA of a fine-tuned delta",
    "moe_upcycle": "dense to mixture of experts",
    "moe_lowrank": "in-place low-rank experts",
    "head_pruning": "head pruning, validated by asserts",
    "drop_layers": "dropped layers, the others renumbered",
    "lora_fold": "LoRA folded into its base",
    "abliteration": "a direction removed from the residual stream",
}
_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def plan_lines(text: str) -> int:
    """Lines of YAML that are neither blank nor comments."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def script_lines(text: str) -> int:
    """Lines of Python that hold a token of code, docstrings left out."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in tokens if t.type not in _NOT_CODE for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - _docstring_lines(text))


def _docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def counts(name: str) -> tuple[int, int]:
    """Lines of the plan and of the script of one example."""
    plan = (ROOT / "plans" / f"{name}.yaml").read_text(encoding="utf-8")
    script = (ROOT / "tests/plans/scripts" / f"{name}.py").read_text(encoding="utf-8")
    return plan_lines(plan), script_lines(script)


def table() -> str:
    """The Markdown table of all examples."""
    rows = ["| example | files | plan lines | script lines |", "|---|---|---:|---:|"]
    for name, what in EXAMPLES.items():
        plan, script = counts(name)
        files = f"[plan](plans/{name}.yaml), [script](tests/plans/scripts/{name}.py)"
        rows.append(f"| {what} | {files} | {plan} | {script} |")
    return "\n".join(rows)


def readme_table(text: str) -> str:
    """What stands between the markers of a README."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main(arguments: list[str]) -> None:
    if "--write" not in arguments:
        print(table())
        return
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md has no {BEGIN} ... {END}")
    path.write_text(f"{head}{begin}\n{table()}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
