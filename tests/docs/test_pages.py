"""Every example of the documentation runs, and gives what stands below it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brainsurgery_jax.cli.app import app
from tests.docs.examples import Section, rendered, sections
from tests.docs.reference import anchor
from tests.docs.write import PAGES, ROOT

EVERY_PAGE = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def each_section() -> Iterator[Any]:
    for name in PAGES:
        for section in sections((ROOT / name).read_text(encoding="utf-8")):
            yield pytest.param(section, id=f"{Path(name).stem}-{section.title or 'start'}")


@pytest.mark.parametrize("section", list(each_section()))
def test_an_example_gives_what_stands_below_it(section: Section) -> None:
    assert rendered(section) == section.text, "`make docs` writes what came out; read the difference"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda p: p.name)
def test_a_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in anchors(target), f"{path}#{heading}"


def anchors(page: Path) -> set[str]:
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"(docs/{p.name})" not in text] == []


def test_the_page_of_commands_names_every_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    names = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    assert "explain" in names
    assert [name for name in names if f"| `{name}" not in text] == []


def test_every_first_mistake_has_a_verdict() -> None:
    mistakes, quality = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("mistakes", "quality"))
    judged = re.findall(r"^\| [^:|]+: (.*?) \| (?:yes|with a thought)", quality, re.MULTILINE)
    assert judged == re.findall(r"^### (.*)$", mistakes, re.MULTILINE)
