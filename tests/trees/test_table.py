"""Every state of the table after every job: the tree that orbax would save, restored strictly by both of its APIs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import brainsurgery_jax as bs
from tests.trees.judge import VERSIONS, assert_same, restore, save, tree_of
from tests.trees.states import BODY, HEAD, JOBS, STATES, fill

CASES = [(state, job) for state, row in STATES.items() for job in row.jobs]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of a state as orbax saves it, made once."""
    folder, paths = tmp_path_factory.mktemp("saved"), {}

    def of(state: str) -> Path:
        if state not in paths:
            tree = fill(STATES[state].make(BODY, (HEAD,)))
            paths[state] = save(folder / str(len(paths)), tree)
        return paths[state]

    return of


@pytest.mark.parametrize(("state", "job"), CASES, ids=lambda part: part.replace(" ", "-"))
def test_orbax_restores_what_a_plan_writes_and_would_have_saved_the_same(
    state: str, job: str, saved: Any, tmp_path: Path
) -> None:
    todo, source = JOBS[job], saved(state)
    target = todo.change(fill(STATES[state].make(todo.body, todo.heads)))
    own = tree_of(save(tmp_path / "own", target), holders=not todo.through)
    inputs = [f"a::{source}", *([f"b::{source}"] if todo.donor else [])]
    steps = [*([{"delete": {"target": f"a::{todo.without}"}}] if todo.without else []), *_with_alias(todo.steps)]
    if todo.through:
        middle = str(tmp_path / todo.through)
        bs.load({"inputs": inputs, "transforms": steps, "output": middle}).run(durable=False)
        inputs, steps = [f"a::{middle}"], []
    for version in VERSIONS:
        out = tmp_path / version
        output = {"path": f"{out}/", "format": "orbax", "alias": "a", "options": {"version": version}}
        bs.load({"inputs": inputs, "transforms": steps, "output": output}).run(durable=False)
        assert tree_of(out, holders=not todo.through) == own
        assert_same(restore(out, version, target), target)
        if not todo.through:
            assert_same(restore(out, version), restore(tmp_path / "own", "v0"))


def _with_alias(steps: Any) -> list[Any]:
    """The steps, references without an alias meaning `a`."""
    return [
        {op: {key: text if "::" in text else f"a::{text}" for key, text in payload.items()}}
        for step in steps
        for op, payload in step.items()
    ]


@pytest.mark.parametrize("state", STATES, ids=lambda part: part.replace(" ", "-"))
@pytest.mark.parametrize("version", VERSIONS)
def test_a_state_in_memory_is_saved_as_orbax_saves_it(state: str, version: str, saved: Any, tmp_path: Path) -> None:
    tree = fill(STATES[state].make(BODY, (HEAD,)))
    bs.save(f"{tmp_path / 'out'}/", tree, format="orbax", options={"version": version}, durable=False)
    assert tree_of(tmp_path / "out") == tree_of(saved(state))
    assert_same(restore(tmp_path / "out", version, tree), tree)
