"""The notebooks of `docs/notebooks/`: `python -m tests.docs.notebooks` writes what their cells give now."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
LIMIT = 300
"""Seconds that a cell may take."""


def execute(path: Path) -> nbformat.NotebookNode:
    """A notebook with what its cells give now. It runs in a folder of its own. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        quiet = ["--log-level=ERROR"]  # not a warning that the kernel listens on loopback in the clear
        client = NotebookClient(
            notebook, timeout=LIMIT, record_timing=False, coalesce_streams=True, extra_arguments=quiet
        )
        client.execute(cwd=place)
    for cell in notebook.cells:
        cell.metadata.clear()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    return notebook


def told(notebook: nbformat.NotebookNode) -> list[tuple[str, Any]]:
    """What each output of a notebook says: texts as printed, and of a rich one its HTML."""
    return [
        (one.output_type, one.text if one.output_type == "stream" else one.data.get("text/html", one.data))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for one in cell.outputs
    ]


def main() -> int:
    """Execute the notebooks, and write those of which an output has changed."""
    for path in PATHS:
        made = execute(path)
        if told(made) != told(nbformat.read(path, as_version=4)):
            nbformat.write(made, path)
            print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
