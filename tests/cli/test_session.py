"""A session as a value: steps make new ones, failures make none, undo goes back, and a plan reproduces what stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.engine.events import Said
from brainsurgery_jax.plan.source import plain
from brainsurgery_jax.plan.typed import nodes
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.run_options import RunKeywords, RunOptions
from brainsurgery_jax.session import Session
from tests.checkpoints import bits, counting, read, write


@pytest.fixture
def begun(here: Path) -> Iterator[Session]:
    write("base.safetensors", {"h.0.w": counting((2, 3)), "h.1.w": counting((2, 3)) + 6, "ids": np.arange(4)})
    plan = bs.load({"inputs": ["base::base.safetensors"], "vars": {"rank": 1}})
    with closing(Session.begin(plan)) as session:
        yield session


def after(session: Session, *texts: str) -> Session:
    for text in texts:
        for step in session.parse(text):
            session = session.step(step).run()
    return session


def names(session: Session, alias: str = "base") -> set[str]:
    return set(session.state.spaces[alias].names)


def test_a_step_makes_another_session_and_leaves_the_old_one_as_it_was(begun: Session):
    later = after(begun, "delete: target: ids")
    assert names(later) == {"h.0.w", "h.1.w"}
    assert names(begun) == {"h.0.w", "h.1.w", "ids"}


def test_an_outcome_tells_what_a_step_does_before_it_is_run(begun: Session):
    (step,) = begun.parse(r"move: from: h\.(\d)\.w, to: layer.\1.w")
    (effect,) = begun.step(step).effects
    assert effect.created == ("base::layer.0.w", "base::layer.1.w")
    assert effect.deleted == ("base::h.0.w", "base::h.1.w")


def test_a_step_that_is_refused_makes_no_session(begun: Session):
    (step,) = begun.parse("delete: target: idz")
    with pytest.raises(bs.PlanError, match=r"no tensor matches 'idz'.*Did you mean 'ids'"):
        begun.step(step)


def test_a_failing_assert_stops_at_its_step(begun: Session):
    (step,) = begun.parse("assert: iszero: ids")
    outcome = begun.step(step)
    with pytest.raises(bs.PlanError, match="'ids' is not zero everywhere"):
        outcome.run()


def test_text_is_told_when_its_step_is_run(begun: Session):
    told: list[object] = []
    (step,) = begun.parse("dump: target: ids, format: json")
    begun.step(step).run(told.append)
    (said,) = [event for event in told if isinstance(event, Said)]
    assert as_text(said.document) == '{"ids":{"shape":[4]}}'


def test_a_rank_that_depends_on_data_is_computed_at_its_step(begun: Session):
    later = after(begun, "phlora: target: h.0.w, target_a: a, target_b: b, rank: {energy: 0.9}")
    assert later.state.spaces["base"].names["a"].aval.shape == (1, 3)


def test_undo_and_redo_walk_over_the_same_sessions(begun: Session):
    last = after(begun, "delete: target: ids", "delete: target: h.0.w")
    back = last.undo().undo()
    assert names(back) == names(begun)
    assert names(back.redo()) == {"h.0.w", "h.1.w"}
    assert names(back.redo().redo()) == {"h.1.w"}


def test_nothing_is_undone_before_the_first_step_nor_redone_after_the_last(begun: Session):
    assert begun.undo() is begun
    assert begun.redo() is begun


def test_a_step_after_an_undo_forgets_what_was_undone(begun: Session):
    later = after(after(begun, "delete: target: ids").undo(), "delete: target: h.0.w")
    assert later.redo() is later


def test_a_save_is_published_at_the_end_of_its_step_and_stays_after_an_undo(begun: Session, here: Path):
    saved = after(begun, "delete: target: ids", "save: out.safetensors")
    assert set(read("out.safetensors")) == {"h.0.w", "h.1.w"}
    assert len(saved.undo().steps) == 1
    assert (here / "out.safetensors").exists()


def test_what_was_saved_can_be_loaded_by_the_next_step(begun: Session):
    later = after(begun, "save: out.safetensors", "load: path: out.safetensors, alias: again")
    assert names(later, "again") == {"h.0.w", "h.1.w", "ids"}


def test_a_save_onto_a_checkpoint_that_is_still_read_is_refused(begun: Session):
    (step,) = begun.parse("save: path: base.safetensors, overwrite: true")
    with pytest.raises(bs.PlanError, match="a checkpoint that this session reads"):
        begun.step(step)


def test_the_output_may_replace_an_input_at_the_end(here: Path):
    write("base.safetensors", {"w": counting((2,)), "x": counting((2,))})
    plan = bs.load({"inputs": ["base.safetensors"], "output": {"path": "base.safetensors", "overwrite": True}})
    with closing(Session.begin(plan)) as session:
        after(session, "delete: target: x").finish().run()
    assert set(read("base.safetensors")) == {"w"}


def test_the_first_checkpoint_loaded_becomes_the_input_that_names_need_no_alias_for(begun: Session):
    with closing(Session.begin()) as empty:
        later = after(empty, "load: base.safetensors", "delete: target: ids")
        assert later.to_plan() == {"inputs": ["model::base.safetensors"], "transforms": [{"delete": {"target": "ids"}}]}
        assert len(later.undo().undo().state.spaces) == 0


def test_the_second_checkpoint_loaded_is_a_step(begun: Session):
    with closing(Session.begin()) as empty:
        later = after(empty, "load: base.safetensors", "load: path: base.safetensors, alias: two")
        assert later.to_plan()["transforms"] == [{"load": {"path": "base.safetensors", "alias": "two"}}]


def test_a_plan_holds_the_steps_that_stand_and_not_those_that_only_printed(begun: Session):
    later = after(begun, "dump", "delete: target: ids", "help: copy", "assert: exists: h.*", "set: verbose: true")
    told = [next(iter(step)) for step in later.to_plan()["transforms"]]
    assert told == ["delete", "assert", "set"]
    assert len(later.to_plan(everything=True)["transforms"]) == 5


def test_an_assert_stands_although_verbose_prints_a_line_for_it(begun: Session):
    later = after(begun, "set: verbose: true", "assert: exists: h.*")
    assert len(later.to_plan()["transforms"]) == 2


def test_a_plan_has_its_outputs_and_its_seed(here: Path):
    write("base.safetensors", {"w": counting((2,))})
    given = {"inputs": ["m::base.safetensors"], "seed": 3, "transforms": [],
             "output": {"path": "out", "shard": "1GB", "sidecars": False}}  # fmt: skip
    with closing(Session.begin(bs.load(given))) as session:
        assert session.to_plan() == given


def test_the_plan_of_a_session_run_anew_writes_the_same_bytes(begun: Session):
    texts = (
        r"move: from: h\.(\d)\.w, to: layer.${vars.rank}.\1.w",
        "scale_: target: layer.*, by: 0.3",
        "phlora_: {target: layer.1.0.w, rank: ${vars.rank}}",
        "- copy:\n    from: ids\n    to: 'more ids'\n- assert: {count: {of: '.*', is: 4}}",
    )
    later = after(begun, *texts)
    after(later, "save: path: one.safetensors")
    plan = bs.load(later.to_plan() | {"output": "two.safetensors"})
    plan.run()
    one, two = read("one.safetensors"), read("two.safetensors")
    assert {n: bits(a) for n, a in one.items()} == {n: bits(a) for n, a in two.items()}


def test_variables_of_the_plan_are_filled_in_typed_steps(begun: Session):
    assert after(begun, "phlora_: target: h.0.w, rank: ${vars.rank}").steps[0].params["rank"] == 1


def test_an_unknown_variable_is_a_mistake_of_the_typed_step(begun: Session):
    with pytest.raises(bs.PlanError, match=r"unknown variable 'rang'.*Did you mean 'rank'"):
        begun.parse("phlora_: target: h.0.w, rank: ${vars.rang}")


# --- What is read as what


def test_a_line_is_oly_and_a_block_is_yaml():
    wanted = [{"copy": {"from": "[*a, 1e3]", "to": "yes"}}]
    assert [plain(n) for n in nodes("copy: from: '[*a, 1e3]', to: yes")] == wanted
    (block,) = nodes("copy:\n  from: '[*a, 1e3]'\n  to: yes")
    assert plain(block) == {"copy": {"from": "[*a, 1e3]", "to": True}}


@pytest.mark.parametrize(
    "text",
    [
        "delete: target: ids",
        "delete: {target: ids}",
        "{delete: {target: ids}}",
        "- delete: {target: ids}",
        "delete: {target: ids}  # a comment",
        "delete:\n  target: ids",
        "delete: {\ntarget: ids\n}",
        "- delete:\n    target: ids",
        "transforms:\n  - delete: {target: ids}",
    ],
)
def test_every_way_to_write_a_step_is_the_same_step(begun: Session, text: str):
    (step,) = begun.parse(text)
    assert step.text == {"delete": {"target": "ids"}}


def test_lines_at_the_margin_are_a_step_each(begun: Session):
    steps = begun.parse("delete: target: ids\ncopy: from: h.0.w, to: x")
    assert [s.text for s in steps] == [{"delete": {"target": "ids"}}, {"copy": {"from": "h.0.w", "to": "x"}}]


def test_a_mistake_in_a_later_line_has_the_place_of_that_line(begun: Session):
    with pytest.raises(bs.PlanError) as caught:
        begun.parse("delete: target: ids\ncopy: from: x to: y")
    (found,) = caught.value.diagnostics
    assert found.span is not None
    assert (found.span.line, found.span.col) == (2, 15)


# --- Looking ahead


def test_a_preview_tells_what_a_step_would_do(begun: Session):
    found = begun.preview("delete: target: h.*")
    assert found.deleted == ("base::h.0.w", "base::h.1.w")
    assert found.matches == (("target", ("h.0.w", "h.1.w")),)


def test_a_preview_of_half_a_step_tells_what_it_matches_so_far(begun: Session):
    found = begun.preview("copy: from: h.*")
    assert found.matches == (("from", ("h.0.w", "h.1.w")),)
    assert [d.code for d in found.problems] == ["key-missing"]


def test_a_preview_tells_what_nested_asserts_match(begun: Session):
    found = begun.preview("assert: all: [{exists: ids}, {not: {iszero: h.*}}]")
    assert [m for _, m in found.matches] == [("ids",), ("h.0.w", "h.1.w")]


def test_a_preview_keeps_nothing_and_opens_nothing(begun: Session):
    nodes_before = len(begun.world.graph._nodes)
    begun.preview("scale_: target: h.*, by: 3")
    found = begun.preview("load: path: base.safetensors, alias: two")
    assert len(begun.world.graph._nodes) == nodes_before
    assert found.created == ("two::h.0.w", "two::h.1.w", "two::ids")


def test_a_preview_names_a_checkpoint_that_it_would_have_to_open(begun: Session):
    write("other.safetensors", {"w": counting((2,))})
    assert begun.preview("load: path: other.safetensors, alias: two").opens == ("other.safetensors",)
    assert len(begun.world.open_keys) == 1


def test_a_preview_says_what_would_be_written_and_where_it_could_not(begun: Session):
    assert begun.preview("save: out.safetensors").writes == ("out.safetensors",)
    (found,) = begun.preview("save: base.safetensors").problems
    assert found.code == "io-output"


def test_a_preview_takes_a_rank_that_depends_on_data_at_its_bound(begun: Session):
    found = begun.preview("phlora: target: h.0.w, target_a: a, target_b: b, rank: {energy: 0.9}")
    assert found.created == ("base::a", "base::b")


def test_a_preview_of_nonsense_is_a_list_of_problems(begun: Session):
    for text in ("", "{", "nonsense: 1", "copy: from: [", "- ", "copy: from: '"):
        begun.preview(text)
    assert [d.code for d in begun.preview("nonsense: x: 1").problems] == ["op-unknown"]


def test_what_is_noted_of_a_checkpoint_comes_with_the_step_that_saves_it(here: Path):
    (here / "model").mkdir()
    write(here / "model/model.safetensors", {"model.embed_tokens.weight": counting((4, 2)),
                                             "model.layers.0.mlp.down_proj.weight": counting((2, 3))})  # fmt: skip
    (here / "model/config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    plan = bs.load({"inputs": ["model"], "output": "out/"})
    with closing(Session.begin(plan)) as session:
        (step,) = session.parse("save: saved/")
        saved, finished = session.step(step), session.finish()
    for outcome, place in ((saved, "save: saved/"), (finished, "output: out/")):
        (note,) = outcome.program.diagnostics
        assert note.message.startswith(f"{place}: config.json says num_hidden_layers 2, but the tensors have 1")


def test_a_session_begun_as_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": np.ones(2, np.float32)})
    with closing(Session.begin(bs.load({"inputs": [str(tmp_path / "m.safetensors")]}), dry_run=True)) as session:
        session.step(*session.parse(f"save: {{path: {tmp_path / 'out.safetensors'}}}")).run()
    assert not (tmp_path / "out.safetensors").exists()


def test_run_keywords_are_the_fields_of_run_options() -> None:
    assert RunKeywords.__annotations__.keys() == {field.name for field in fields(RunOptions)}
