"""The glossary is short, and what it names in the code is there."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import pytest

from tests.docs.write import ROOT


class Term(NamedTuple):
    term: str
    meaning: str
    place: str


PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
TERMS = [Term(*row) for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([\w.]+)` \|$", PAGE, re.MULTILINE)]


def test_the_glossary_has_at_most_forty_terms_each_once():
    names = [term.term for term in TERMS]
    assert len(names) == len(set(names)) == PAGE.partition("## Glossary")[2].count("\n|") - 2
    assert 30 <= len(names) <= 40


@pytest.mark.parametrize("term", TERMS, ids=[term.term for term in TERMS])
def test_a_term_names_something_that_is_in_the_package(term: Term):
    place = f"brainsurgery_jax.{term.place}"
    module, _, name = place.rpartition(".")
    assert hasattr(import_module(module), name) or find_spec(place)


def test_the_drawing_names_packages_that_exist():
    drawing = PAGE.partition("## Glossary")[0]
    folders = set(re.findall(r"(?<!\S)([a-z]+(?:/[a-z]+)*)/(?=\s)", drawing))
    assert folders == {"plan", "lower", "select", "ops", "store", "engine", "engine/plan"}
    assert [folder for folder in folders if not (ROOT / "brainsurgery_jax" / folder).is_dir()] == []
