"""Names and trees: what a name leaves open, and trees that come back as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.store.key_paths import (
    NOTES,
    KeyNotes,
    ListIndex,
    Path,
    TupleIndex,
    clash,
    name_of,
    notes_of,
    path_of,
    read_notes,
)
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree, nest, tree_in

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

    def walk(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, (*path, key))
        elif isinstance(node, list | tuple):
            kind = TupleIndex if isinstance(node, tuple) else ListIndex
            for at, value in enumerate(node):
                yield from walk(value, (*path, kind(at)))
        else:
            yield path, node

    return dict(walk(tree, ()))


@given(trees.filter(lambda tree: not isinstance(tree, int)))
def test_a_tree_comes_back_from_names_and_notes(tree: Any) -> None:
    found = paths(tree)
    names = {name_of(path): leaf for path, leaf in found.items()}
    whole = KeyTree({name_of(path): path for path in found})
    told = tree_in(whole.notes(names).encode(), names)
    if len(names) == len(found) and all(told.path(name_of(p)) == p for p in found):
        assert nest((told.path(name), leaf) for name, leaf in names.items()) == tree


def test_without_notes_every_segment_is_a_key() -> None:
    names = {"a.0.b": 1, "a.1.b": 2}
    assert nest((NO_TREE.path(n), leaf) for n, leaf in names.items()) == {"a": {"0": {"b": 1}, "1": {"b": 2}}}


def test_a_key_with_dots_is_one_key() -> None:
    notes = notes_of([("a.b", "c"), ("a", "d")])
    assert notes.dotted == {"a.b": 1}
    tree = tree_in(notes.encode(), ["a.b.c", "a.d"])
    assert nest((tree.path(n), n) for n in ("a.b.c", "a.d")) == {"a.b": {"c": "a.b.c"}, "a": {"d": "a.d"}}


def test_a_list_that_lost_an_item_becomes_a_dict() -> None:
    assert nest([(("a", ListIndex(0)), 1), (("a", ListIndex(2)), 3)]) == {"a": {"0": 1, "2": 3}}


def test_plain_names_need_no_notes() -> None:
    assert notes_of([("a", "b"), ("c",)]).encode() == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"lists": 3, "dotted": {"a": "x"}, "empty": []}'])
def test_notes_that_make_no_sense_mean_nothing(text: str) -> None:
    assert read_notes({NOTES: text}) == KeyNotes()


def test_notes_are_short_json() -> None:
    assert json.loads(KeyNotes(lists=("layers",)).encode()[NOTES]) == {"lists": ["layers"]}


def test_a_tensor_that_is_the_prefix_of_another_is_found() -> None:
    assert clash({path_of(name, {}): name for name in ("b", "a.b.c", "a.b")}) == ("a.b", "a.b.c")
    assert clash({path_of(name, {}): name for name in ("a.b", "a.bc")}) is None
