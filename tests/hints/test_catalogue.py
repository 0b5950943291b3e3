"""Every hint of the package is tried here, or is listed with the test that tries it, or with the reason why there is
nothing to try."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.hints.catalogue import Hint, catalogue
from tests.hints.test_hints import ALL, hint_of

ROOT = Path(__file__).parents[2]
LISTED = Path(__file__).parent / "not_tried.txt"
DATA = re.compile(r"\b(delet|remov|overwrit|drop|dtype|cast|allow|force|unmatched|leave|replace|move)", re.IGNORECASE)
"""Words of hints that propose to change data."""


def listed() -> dict[Hint, str]:
    """The hints that are not tried, and their reasons."""
    found, reason = {}, ""
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            file, _, text = line.partition(": ")
            found[Hint(file, text.encode().decode("unicode_escape") if "\\n" in text else text)] = reason
    return found


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    """What the cases print, and of which file it is where several files have such words."""
    return tuple(_printed(tmp_path_factory.mktemp("hints")))


def tried_by(printed: Iterable[tuple[str, str]]) -> set[Hint]:
    """The hints that stand in what is printed."""
    files = Counter(hint.text for hint in catalogue())
    return {
        hint
        for text, file in printed
        for hint in catalogue()
        if hint.is_in(text) and (files[hint.text] == 1 or hint.file == file)
    }


def _printed(folder: Path) -> Iterator[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for at, case in enumerate(ALL):
            (place := folder / str(at)).mkdir()
            patch.chdir(place)
            yield hint_of(case), case.of


def test_every_hint_is_tried_or_listed(printed: tuple[tuple[str, str], ...]) -> None:
    tried = tried_by(printed)
    assert sorted(catalogue() - tried - set(listed())) == []
    assert sorted(set(listed()) & tried) == [], "tried: not to be listed"
    assert sorted(set(listed()) - catalogue()) == [], "no longer a hint"


def test_what_is_listed_has_one_of_the_reasons() -> None:
    reasons = {reason for reason in listed().values() if not reason.startswith("tried by ")}
    assert reasons == {
        "names what there is, or what is read how: nothing is proposed that changes data",
        "writes the text of a plan, an override or a layout otherwise: its own page of diagnostics shows it",
        "asks for another path, or for the user's own decision",
        "fetches or saves damaged data again",
        "leaves something out of the call or the step: no tensor changes",
        "gives a value or an option that the mistake lacks",
        "proposes a change that the user alone can decide on, in words: no value is filled in",
    }


def test_a_test_that_tries_a_hint_elsewhere_exists() -> None:
    for reason in {reason for reason in listed().values() if reason.startswith("tried by ")}:
        path, _, name = reason.removeprefix("tried by ").partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), reason
