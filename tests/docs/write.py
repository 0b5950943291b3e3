"""Write all that is generated in the documentation: `python -m tests.docs.write`, or `make docs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from brainsurgery_jax.plan.schema import plan_schema
from tests.docs import recipe_page, reference
from tests.docs.examples import Section, rendered, sections

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "docs/commands.md",
    "docs/language.md",
    "docs/diagnostics.md",
    "docs/merging.md",
    "docs/structure.md",
    "docs/adapters.md",
    "docs/quantization.md",
    "docs/editing.md",
    "docs/mistakes.md",
    "docs/from-brainsurgery.md",
    "docs/from-mergekit.md",
    "docs/from-a-script.md",
    "docs/json.md",
    "docs/looking.md",
    "docs/jax.md",
    "docs/trees.md",
    "docs/provenance.md",
)
"""Pages whose examples are run, and their outcome written below them."""


def main() -> int:
    """Write the pages, tell which of them are others than before, and which examples failed; yields the exit code."""
    failures: list[str] = []
    made = {"docs/ops.md": reference.page(), "docs/recipes.md": recipe_page.page()}
    made["plans/schema.json"] = json.dumps(plan_schema(), indent=2) + "\n"
    for name in PAGES:
        cut = sections((ROOT / name).read_text(encoding="utf-8"))
        made[name] = reference.with_modes("".join(_rendered(name, section, failures) for section in cut))
    for name, text in made.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    print(*failures, sep="\n", end="")
    return 1 if failures else 0


def _rendered(name: str, section: Section, failures: list[str]) -> str:
    """The section; as it stands if an example of it fails."""
    try:
        return rendered(section)
    except Exception as error:
        failures.append(f"{name}, {section.title or 'start'}: {error}\n")
        return section.text


if __name__ == "__main__":
    sys.exit(main())
