"""Every hint of the package is tried: by the tables here, or by a test of its own, which `tried_by.txt` names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hints.catalogue import Hint, catalogue
from tests.hints.rows import found
from tests.hints.test_hints import ALL, hint_of
from tests.hints.texts import ROWS

ROOT = Path(__file__).parents[2]
LISTED = Path(__file__).parent / "tried_by.txt"


def listed() -> dict[Hint, str]:
    """The hints that tests of their own try, and those tests."""
    hints, test = {}, ""
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            test = line[2:]
        elif line:
            file, _, text = line.partition(": ")
            hints[Hint(file, text.encode().decode("unicode_escape") if "\\n" in text else text)] = test
    return hints


TEXTS = ("plan/", "select/", "layout/", "importers/", "expression/parse.py", "config_patch.py", "plugins.py")
"""The files whose hints are about the text that is read; a hint of another may sound like one of theirs."""


class Printed(NamedTuple):
    """A hint that was printed, and the files that it may come from; None: any, if no other has such words."""

    text: str
    files: tuple[str, ...] | None


def tried_by(printed: Iterable[Printed]) -> set[Hint]:
    """The hints that stand in what is printed."""
    number = Counter(hint.text for hint in catalogue())
    return {
        hint
        for text, files in printed
        for hint in catalogue()
        if hint.is_in(text) and (number[hint.text] == 1 if files is None else hint.file.startswith(files))
    }


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Printed, ...]:
    """What the cases and the texts print."""
    return tuple(_printed(tmp_path_factory.mktemp("hints")))


def _printed(folder: Path) -> Iterator[Printed]:
    with pytest.MonkeyPatch.context() as patch:
        for at, case in enumerate(ALL):
            (place := folder / str(at)).mkdir()
            patch.chdir(place)
            yield Printed(hint_of(case), (case.of,) if case.of else None)
        for at, row in enumerate(ROWS):
            (place := folder / f"text {at}").mkdir()
            patch.chdir(place)
            yield Printed(found(row).hint, TEXTS)


def test_every_hint_is_tried(printed: tuple[Printed, ...]) -> None:
    tried = tried_by(printed)
    assert sorted(catalogue() - tried - set(listed())) == []
    assert sorted(set(listed()) & tried) == [], "tried: not to be listed"
    assert sorted(set(listed()) - catalogue()) == [], "no longer a hint"


def test_a_test_that_tries_a_hint_elsewhere_exists() -> None:
    for test in set(listed().values()):
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test
