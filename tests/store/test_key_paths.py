"""Names and trees: what a name leaves open, and trees that come back as they were."""

from __future__ import annotations

import json
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.store.key_paths import (
    NOTES,
    KeyNotes,
    ListIndex,
    Path,
    clash,
    name_of,
    nest,
    notes_of,
    path_of,
    read_notes,
)

keys = st.text("ab.", min_size=1, max_size=3).filter(lambda key: key.strip("."))
trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=3)
        | st.dictionaries(st.integers(0, 12), inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


def paths(tree: Any) -> dict[Path, Any]:
    """The leaves of a tree by key path, in our words."""

    def key(entry: Any) -> str | int:
        return ListIndex(entry.idx) if isinstance(entry, jax.tree_util.SequenceKey) else entry.key

    return {tuple(map(key, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def tuples(tree: Any, name: str = "") -> list[str]:
    """The names of the tuples in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    inner = [found for key, value in items for found in tuples(value, f"{name}.{key}" if name else str(key))]
    return [name, *inner] if isinstance(tree, tuple) else inner


@given(trees.filter(lambda tree: not isinstance(tree, int)))
def test_a_tree_comes_back_from_names_and_notes(tree: Any) -> None:
    found = paths(tree)
    names = {name_of(path): leaf for path, leaf in found.items()}
    notes = notes_of(found, tuples=tuples(tree))
    if len(names) == len(found) and all(path_of(name_of(p), notes.dotted) == tuple(map(str, p)) for p in found):
        assert nest(names, read_notes(notes.encode())) == tree


def test_without_notes_every_segment_is_a_key() -> None:
    assert nest({"a.0.b": 1, "a.1.b": 2}, KeyNotes()) == {"a": {"0": {"b": 1}, "1": {"b": 2}}}


def test_a_key_with_dots_is_one_key() -> None:
    notes = notes_of([("a.b", "c"), ("a", "d")])
    assert notes.dotted == {"a.b": 1}
    assert nest({"a.b.c": 1, "a.d": 2}, notes) == {"a.b": {"c": 1}, "a": {"d": 2}}


def test_a_list_that_lost_an_item_becomes_a_dict() -> None:
    assert nest({"a.0": 1, "a.2": 3}, KeyNotes(lists=("a",))) == {"a": {"0": 1, "2": 3}}


def test_plain_names_need_no_notes() -> None:
    assert notes_of([("a", "b"), ("c",)]).encode() == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"lists": 3, "dotted": {"a": "x"}, "empty": []}'])
def test_notes_that_make_no_sense_mean_nothing(text: str) -> None:
    assert read_notes({NOTES: text}) == KeyNotes()


def test_notes_are_short_json() -> None:
    assert json.loads(KeyNotes(lists=("layers",)).encode()[NOTES]) == {"lists": ["layers"]}


def test_a_tensor_that_is_the_prefix_of_another_is_found() -> None:
    assert clash(["b", "a.b.c", "a.b"], {}) == ("a.b", "a.b.c")
    assert clash(["a.b", "a.bc"], {}) is None
