"""Ops that expand to other steps: built from plain data, checked as steps are, shown as a tree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brainsurgery_jax.op import OPS, Name, Pattern, Real, control
from brainsurgery_jax.protocol import Edit, Expand, Publish, Substep, View
from brainsurgery_jax.reports.explanation import number_steps
from tests.null.world import after, complaints, found, program


@pytest.fixture(autouse=True)
def _ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops of this page alone."""
    for name in ("halve", "swap_halves", "endless", "keep_scratch", "misspelt"):
        monkeypatch.delitem(OPS, name, raising=False)

    @control()
    def halve(view: View, *, target: Pattern) -> Iterator[Edit]:
        """Halve tensors."""
        yield Expand((Substep("scale_", {"target": target, "by": 0.5}),))

    @control()
    def swap_halves(view: View, *, target: Pattern, to: Name, by: Real = 0.5) -> Iterator[Edit]:
        """Halve a copy and keep that."""
        work = view.scratch()
        yield Expand(
            (
                Substep("copy", {"from": target, "to": f"{work}::w"}),
                Substep("halve", {"target": f"{work}::w"}),
                Substep("copy", {"from": f"{work}::w", "to": to}),
                Substep("config", {"patch": {"halved": True}, "alias": to.alias}),
            )
        )

    @control()
    def endless(view: View) -> Iterator[Edit]:
        """Expand to itself."""
        yield Expand((Substep("endless", {}),))

    @control()
    def keep_scratch(view: View) -> Iterator[Edit]:
        """Save what ends with the step."""
        work = view.scratch()
        yield Publish("o.safetensors", work, None, None, None, False)

    @control()
    def misspelt(view: View) -> Iterator[Edit]:
        """Ask for an op that there is not."""
        yield Expand((Substep("scael_", {"target": "w", "by": 2}),))

    names = ("halve", "swap_halves", "endless", "keep_scratch", "misspelt")
    made = {name: OPS.pop(name) for name in names}
    for name, op in made.items():
        monkeypatch.setitem(OPS, name, op)


STEP = {"swap_halves": {"target": "w", "to": "w_half"}}


def test_an_op_expands_to_steps_that_do_what_they_do_in_a_plan():
    steps = ({"copy": {"from": "w", "to": "x"}}, {"scale_": {"target": "x", "by": 0.5}})
    (ours,), (theirs,) = (list(after(*s).spaces["m"].names.items())[-1:] for s in ([STEP], steps))
    assert (ours[0], ours[1].aval, ours[1].kernel) == ("w_half", theirs[1].aval, theirs[1].kernel)


def test_the_effects_of_an_expansion_are_a_tree():
    (effect,) = program(STEP).effects
    assert [(depth, e.step.op.name) for depth, e in effect.walk() if e.step.op] == [
        (0, "swap_halves"), (1, "copy"), (1, "halve"), (2, "scale_"), (1, "copy"), (1, "config"),
    ]  # fmt: skip


def test_explain_numbers_the_steps_of_the_plan_and_indents_those_within_by_their_depth():
    heads = [head for head, _, _ in number_steps(program(STEP, "exit").effects)]
    assert heads == ["  1", " " * 7, " " * 7, " " * 11, " " * 7, " " * 7, "  2"]


def test_what_happens_to_scratch_names_is_not_counted_and_ends_with_the_step():
    state = after(STEP)
    assert list(state.spaces) == ["m"]
    assert [n for outer in state.effects for _, e in outer.walk() for n in e.created + e.changed] == ["m::w_half"]
    assert state.written == {"m"}


def test_scratch_names_of_one_step_are_free_for_the_next():
    assert complaints(STEP, {"swap_halves": {"target": "v", "to": "v_half"}}) == []


def test_an_expansion_changes_configs_as_a_step_does():
    made = program(STEP, output="out/")
    assert made.publications[0].side_files == {"config.json": b'{\n  "halved": true\n}\n'}


def test_scratch_names_are_never_saved():
    (problem,) = found({"keep_scratch": {}})
    assert problem.code == "alias-unknown"
    assert "never saved" in problem.message


def test_a_mistake_in_an_expansion_is_told_of_the_op_at_its_place():
    plan = {"swap_halves": {"target": "w", "to": "v"}}
    (problem,) = found(plan)
    assert problem.code == "dest-exists"
    assert problem.message.startswith("swap_halves: copy")


def test_an_op_that_does_not_exist_is_refused_as_in_a_plan():
    (problem,) = found({"misspelt": {}})
    assert problem.code == "op-unknown"
    assert problem.message == "misspelt: unknown op 'scael_'. Did you mean 'scale_'?"


def test_expansions_without_an_end_are_one_mistake():
    (problem,) = found({"endless": {}})
    assert problem.code == "execute-nested"
    assert "more than 16 levels deep" in problem.message
