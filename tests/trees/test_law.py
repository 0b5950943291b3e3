"""The law of trees: what a plan writes is the renamed, pruned or merged tree, whatever the tree; and orbax agrees."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.api import lower_plan
from brainsurgery_jax.apply.key_trees import take_apart
from brainsurgery_jax.apply.names import aval_of
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.key_paths import TupleIndex
from brainsurgery_jax.store.key_tree import nest
from brainsurgery_jax.world import Files
from tests.trees.judge import VERSIONS, assert_same, restore, save, tree_of

keys = st.sampled_from(["a", "b", "c", "0", "a.b"])
leaves = st.sampled_from([None, {}, [], ()]) | st.integers(0, 99).map(lambda n: np.full(2, n, np.float32))
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=8,
)
roots = st.fixed_dictionaries({"w": st.just(np.zeros(1, np.float32)), "a": trees, "b": trees})


def dict_keys(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all keys of dicts in a tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        if isinstance(key, str):
            yield (*path, key)
        yield from dict_keys(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What lies at a path."""
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of a tree in which `change` made another dict of the one at a path."""
    if not path:
        return change(tree)
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    made = {key: changed(value, path[1:], change) if key == path[0] else value for key, value in items}
    return made if isinstance(tree, dict) else type(tree)(made.values())


def world_of(**trees: Any) -> Files:
    """A world in which trees are checkpoints."""
    sources = {}
    for alias, tree in trees.items():
        apart = take_apart(alias, tree)
        avals = {name: aval_of(leaf) for name, leaf in apart.tensors.items()}
        sources[f"/{alias}"] = MemorySource(f"/{alias}", apart.tensors, avals, {}, apart.key_tree)
    return Files(sources=sources)


def written(steps: Any, **trees: Any) -> Any:
    """The tree that a plan would write of the alias `m`."""
    output = {"path": "/nowhere/out/", "format": "orbax", "alias": "m"}
    plan = bs.load({"inputs": [f"{alias}::/{alias}" for alias in trees], "transforms": steps, "output": output})
    world = world_of(**trees)
    program = lower_plan(plan, world)
    assert not [d for d in program.errors if d.code not in ("io-output", "output-parent")], program.errors
    (made,) = program.publications
    arrays = {f"/{alias}": take_apart("", tree).tensors for alias, tree in trees.items()}
    tensors = {n: arrays[e.source.header.path][e.name] if e.is_leaf else e for n, e in made.tensors.items()}
    others = {name: leaf.value for name, leaf in made.tree.others.items()}
    return nest((made.tree.path(name), value) for name, value in {**tensors, **others}.items())


def spell(path: tuple[Any, ...]) -> str:
    """The name of what lies at a path."""
    return ".".join(map(str, path))


def has_own_names(tree: Any) -> bool:
    """Whether no key with a dot in it reads like another path: no two nodes have one name, no leaf that of a prefix."""
    names = [spell(path) for path in all_paths(tree)]
    leaves = [spell(path) for path in all_paths(tree) if next(all_paths(at(tree, path)), None) is None]
    return len({*names}) == len(names) and not any(n.startswith(f"{leaf}.") for leaf in leaves for n in names)


def all_paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nodes but the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield (*path, key)
        yield from all_paths(value, (*path, key))


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same, containers and values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or np.array_equal(one, other)


def below(path: tuple[Any, ...]) -> str:
    """A pattern for what lies at a path, and below."""
    return rf"{re.escape(spell(path))}(\..*)?"


@given(roots, st.data())
def test_a_renamed_key_takes_along_all_that_lies_below_it(tree: Any, data: st.DataObject) -> None:
    assume(has_own_names(tree))
    path = data.draw(st.sampled_from([*dict_keys(tree)]))
    move = {"move": {"from": f"m::{below(path)}", "to": rf"m::{spell((*path[:-1], 'new'))}\1"}}
    expected = changed(tree, path[:-1], lambda d: {"new" if k == path[-1] else k: v for k, v in d.items()})
    assert equal(written([move], m=tree), expected)


@given(roots, st.data())
def test_a_deleted_key_takes_along_all_that_lies_below_it(tree: Any, data: st.DataObject) -> None:
    assume(has_own_names(tree))
    known = [path for path in dict_keys(tree) if path != ("w",) and len(at(tree, path[:-1])) > 1]
    path = data.draw(st.sampled_from(known))
    delete = {"delete": {"target": f"m::{below(path)}"}}
    expected = changed(tree, path[:-1], lambda d: {k: v for k, v in d.items() if k != path[-1]})
    assert equal(written([delete], m=tree), expected)


@given(roots, trees.filter(lambda tree: bool([*all_paths(tree)])))
def test_what_is_copied_from_another_tree_lies_as_it_lay_there(tree: Any, other: Any) -> None:
    assume(has_own_names(tree) and has_own_names({"new": other}))
    assume(take_apart("", other).tensors)
    copy = {"copy": {"from": r"n::(new(\..*)?)", "to": r"m::\1"}}
    assert equal(written([copy], m=tree, n={"new": other}), {**tree, "new": other})


@given(roots)
def test_a_tree_that_nothing_touches_stays_as_it_is(tree: Any) -> None:
    assume(has_own_names(tree))
    assert equal(written([], m=tree), tree)
    unchanged = {"assert": {"unchanged": {}}}
    assert equal(written([unchanged], m=tree), tree)


@settings(max_examples=4)
@given(roots, st.data())
def test_orbax_saves_the_same_tree(tree: Any, data: st.DataObject) -> None:
    assume(has_own_names(tree))
    path = data.draw(st.sampled_from([*dict_keys(tree)]))
    expected = changed(tree, path[:-1], lambda d: {"new" if k == path[-1] else k: v for k, v in d.items()})
    move = {"move": {"from": below(path), "to": rf"{spell((*path[:-1], 'new'))}\1"}}
    with tempfile.TemporaryDirectory() as folder:
        source, own = save(Path(folder, "in"), tree), save(Path(folder, "own"), expected)
        for version in VERSIONS:
            output = {"path": f"{folder}/{version}/", "format": "orbax", "options": {"version": version}}
            bs.load({"inputs": [f"m::{source}"], "transforms": [move], "output": output}).run(durable=False)
            assert tree_of(Path(folder, version)) == tree_of(own)
            assert_same(restore(Path(folder, version), version, expected), expected)


def test_an_index_in_a_tuple_is_told_from_one_in_a_list() -> None:
    paths = take_apart("", {"t": (np.ones(1),), "l": [np.ones(1)]}).paths
    assert {name: isinstance(path[1], TupleIndex) for name, path in paths.items()} == {"t.0": True, "l.0": False}
