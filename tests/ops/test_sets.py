"""Steps on whole sets of tensors (`over`): what is joined, in which order, and that cutting undoes it."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.op import OPS
from tests.checkpoints import counting, plan_of, problems, run_plan, same

pytestmark = pytest.mark.usefixtures("here")

EACH = r"h\.(?P<i>\d+)\.e\.(?P<e>\d+)\.w"
TOKENS = ["h", "$i", "e", "$e", "w"]
DROP = {"delete": {"target": EACH}}


def experts(layers: int, count: int, shape: tuple[int, ...] = (2, 3)) -> dict[str, np.ndarray]:
    """Tensors `h.I.e.E.w`, no two elements alike, in an order that is not the numbers'."""
    size = int(np.prod(shape))
    numbers = [(i, e) for i in range(layers) for e in range(count)]
    return {f"h.{i}.e.{e}.w": counting(shape) + size * (i * count + e) for i, e in reversed(numbers)}


@st.composite
def sets(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...], int]:
    """How many layers and experts, of which shape, and an axis of what they are stacked to."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    return draw(st.integers(1, 3)), draw(st.integers(2, 12)), shape, draw(st.integers(-len(shape) - 1, len(shape)))


@settings(max_examples=40)
@given(case=sets(), structured=st.booleans())
def test_to_unstack_what_was_stacked_gives_it_back(case: tuple, structured: bool) -> None:
    layers, count, shape, dim = case
    source, middle = (TOKENS, ["s", "$i"]) if structured else (EACH, r"s.\g<i>")
    back = TOKENS if structured else r"h.\1.e.${e}.w"
    steps = [
        {"stack": {"from": source, "to": middle, "over": "e", "dim": dim}},
        DROP,
        {"unstack": {"from": ["s", "$i"] if structured else r"s\.(\d+)", "to": back, "over": "e", "dim": dim}},
        {"delete": {"target": "s.*"}},
    ]
    tensors = experts(layers, count, shape)
    with TemporaryDirectory() as folder:
        made = run_plan(Path(folder), tensors, steps)
    assert set(made) == set(tensors)
    assert all(same(made[name], x) for name, x in tensors.items())


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12), rest=st.lists(st.integers(1, 3), max_size=2),
    axis=st.integers(0, 2),
)  # fmt: skip
def test_to_concatenate_what_was_split_gives_it_back(sizes: list[int], rest: list[int], axis: int) -> None:
    axis = min(axis, len(rest))
    shape = (*rest[:axis], sum(sizes), *rest[axis:])
    tensors = {"h.0": counting(shape), "h.1": -counting(shape)}
    steps = [
        {"split": {"from": r"h\.(\d)", "to": r"p.\1.${k}", "over": "k", "sizes": sizes, "dim": axis}},
        {"delete": {"target": "h.*"}},
        {"concat": {"from": r"p\.(?P<i>\d)\.(?P<k>\d+)", "to": r"h.\g<i>", "over": "k", "dim": axis - len(shape)}},
        {"delete": {"target": "p.*"}},
    ]
    with TemporaryDirectory() as folder:
        made = run_plan(Path(folder), tensors, steps)
    assert set(made) == set(tensors)
    assert all(same(made[name], x) for name, x in tensors.items())


def test_numbers_are_joined_in_numeric_order_not_as_text(tmp_path: Path) -> None:
    made = run_plan(tmp_path, experts(1, 11, (1,)), {"concat": {"from": EACH, "to": "all", "over": "e"}})
    assert made["all"].tolist() == list(range(11))


def test_numbers_need_not_begin_with_0(tmp_path: Path) -> None:
    tensors = {"e.4": counting((2,)), "e.5": -counting((2,))}
    made = run_plan(tmp_path, tensors, {"stack": {"from": r"e\.(?P<e>\d)", "to": "all", "over": "e"}})
    assert made["all"].tolist() == [[0, 1], [0, -1]]


def test_a_set_of_one_is_stacked_too(tmp_path: Path) -> None:
    made = run_plan(tmp_path, experts(2, 1), {"stack": {"from": TOKENS, "to": ["h", "$i", "w"], "over": "e"}})
    assert made["h.1.w"].shape == (1, 2, 3)


def test_the_sources_of_a_join_stay(tmp_path: Path) -> None:
    tensors = experts(1, 2)
    made = run_plan(tmp_path, tensors, {"stack": {"from": EACH, "to": "all", "over": "e"}})
    assert set(made) == {*tensors, "all"}


def test_the_same_part_of_each_tensor_is_joined(tmp_path: Path) -> None:
    tensors = experts(1, 3)
    step = {"concat": {"from": EACH + "::[1, 1:]", "to": "all", "over": "e"}}
    made = run_plan(tmp_path, tensors, step)
    assert made["all"].tolist() == [v for e in range(3) for v in tensors[f"h.0.e.{e}.w"][1, 1:]]


def test_the_same_part_of_each_tensor_is_cut(tmp_path: Path) -> None:
    x = counting((4, 6))
    made = run_plan(tmp_path, {"w": x}, {"split": {"from": "w::[:, ::2]", "to": "p.${k}", "over": "k", "parts": 2}})
    assert same(made["p.1"], x[2:, ::2])


def test_results_go_to_another_alias(tmp_path: Path) -> None:
    steps = [
        {"prefixes": {"mode": "add", "alias": "work"}},
        {"stack": {"from": EACH, "to": r"work::h.\g<i>", "over": "e"}},
    ]
    plan = plan_of(tmp_path, experts(2, 2), steps, output={"path": "out.safetensors", "alias": "work"})
    bs.load(plan).run(durable=False)
    assert set(bs.open("out.safetensors").avals) == {"h.0", "h.1"}


def test_swapped_roles_of_the_captures_join_over_layers(tmp_path: Path) -> None:
    tensors = experts(3, 2)
    made = run_plan(tmp_path, tensors, {"stack": {"from": TOKENS, "to": ["scan", "$e"], "over": "i"}})
    assert same(made["scan.1"], np.stack([tensors[f"h.{i}.e.1.w"] for i in range(3)]))


def test_a_tensor_is_not_cut_into_millions(tmp_path: Path) -> None:
    step = {"unstack": {"from": "w", "to": "x.${k}", "over": "k"}}
    (found,) = problems(tmp_path, {"w": np.zeros(1_000_001, np.uint8)}, step)
    assert "1,000,001 parts are too many" in found.message


def test_a_step_that_may_find_nothing_joins_nothing(tmp_path: Path) -> None:
    step = {"concat": {"from": "x" + EACH, "to": r"h.\g<i>", "over": "e", "if_missing": "skip"}}
    assert set(run_plan(tmp_path, {"w": counting((2,))}, step)) == {"w"}


def test_a_word_in_place_of_a_number_is_refused_with_a_way_out(tmp_path: Path) -> None:
    tensors = {"q.w": counting((2,)), "k.w": counting((2,))}
    (found,) = problems(tmp_path, tensors, {"concat": {"from": ["$p", "w"], "to": ["qk"], "over": "p"}})
    assert found.code == "over-number" and "`from` as a list, without `over`" in found.hint


def test_one_mistake_in_a_set_silences_the_steps_that_need_its_result(tmp_path: Path) -> None:
    steps = [
        {"stack": {"from": EACH, "to": r"h.\g<i>", "over": "x"}},
        {"scale_": {"target": r"h\.0", "by": 2}},
    ]
    assert [d.code for d in problems(tmp_path, experts(1, 2), steps)] == ["over-capture"]


@pytest.mark.parametrize("key", ["from", "to", "over"])
def test_a_mistake_is_told_at_the_key_that_it_is_about(tmp_path: Path, key: str) -> None:
    wrong = {"from": "none", "to": r"h.\g<e>", "over": "x"}[key]
    payload = {"from": EACH, "to": r"h.\g<i>", "over": "e"} | {key: wrong}
    (found,) = problems(tmp_path, experts(1, 2), {"stack": payload})
    assert found.message.startswith(f"stack.{key}: ")


@pytest.mark.parametrize("name", ["concat", "stack", "split", "unstack"])
def test_the_documented_step_on_a_set_is_one(name: str, tmp_path: Path) -> None:
    (step,) = [line.strip("`.") for line in OPS[name].doc.splitlines() if line.startswith(f"`{name}: ")]
    file = tmp_path / "plan.yaml"
    file.write_text(f"inputs: [model::x.safetensors]\ntransforms:\n  - {step}\n")
    assert [str(p) for p in bs.load(str(file)).problems] == []
    assert "over: e" in step


# --- Lists for each match ---------------------------------------------------------------------------------------------

QK = {f"h.{i}.{n}": counting((2, 3)) + 10 * i + at for i in range(3) for at, n in enumerate("qk")}


@pytest.mark.parametrize("op", ["concat", "stack"])
def test_a_list_whose_result_names_captures_is_joined_for_each_match(tmp_path: Path, op: str) -> None:
    step = {op: {"from": [r"h\.(\d)\.q", r"h.\1.k::[:1]" if op == "concat" else r"h.\1.k"], "to": r"h.\1.qk"}}
    made = run_plan(tmp_path, QK, step)
    for i in range(3):
        q, k = QK[f"h.{i}.q"], QK[f"h.{i}.k"]
        want = np.concatenate([q, k[:1]]) if op == "concat" else np.stack([q, k])
        assert same(made[f"h.{i}.qk"], want)
    assert len(made) == 9


def test_a_list_for_each_match_needs_every_partner(tmp_path: Path) -> None:
    step = {"concat": {"from": [r"h\.(\d)\.q", r"h.\1.v"], "to": r"h.\1.qv"}}
    assert [d.code for d in problems(tmp_path, QK, step)] == ["tensor-missing"]


def test_captures_that_the_first_of_a_list_does_not_have_are_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, QK, {"concat": {"from": [r"h\.(\d)\.q", r"h.\2.k"], "to": r"h.\1.qk"}})
    assert found.code == "template-group" and found.message.startswith("concat.from:")


# --- One to many ------------------------------------------------------------------------------------------------------


def test_a_match_is_copied_to_a_name_for_each_number_and_text(tmp_path: Path) -> None:
    step = {"copy": {"from": r"h\.0\.(.)::[1:]", "to": r"h.${i}.\1", "over": {"i": ["3:5", 9, "last"]}}}
    made = run_plan(tmp_path, QK, step)
    copies = {f"h.{i}.{n}": QK[f"h.0.{n}"][1:] for i in (3, 4, 9, "last") for n in "qk"}
    assert set(made) == {*QK, *copies}
    assert all(same(made[name], x) for name, x in copies.items())


def test_copies_may_have_names_of_tokens_and_of_formulas(tmp_path: Path) -> None:
    tokens = {"copy": {"from": ["h", "2", "$n"], "to": ["g", "$i", "$n"], "over": {"i": [1]}}}
    formula = {"copy": {"from": r"h\.1\.q", "to": r"h.${1 + 3 * i}.k2", "over": {"i": [1, 2]}}}
    made = run_plan(tmp_path, QK, [tokens, formula])
    assert {"g.1.q", "g.1.k", "h.4.k2", "h.7.k2"} == set(made) - set(QK)
    assert same(made["h.7.k2"], QK["h.1.q"])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"over": {"i": [1, 1]}}, "value-type"),
        ({"over": {"i": ["4:2"]}}, "value-type"),
        ({"over": {"i": [1], "j": [2]}}, "value-type"),
        ({"over": {"i": [1, 2]}, "to": r"x.\1"}, "over-template"),
        ({"over": {"i": [1, 2]}, "to": "x.${i}"}, "names-collide"),
        ({"over": {"i": [1, 2]}, "to": r"h.${i}.\1"}, "dest-exists"),
        ({"to": r"h.${i}.\1"}, "template-group"),
    ],
)  # fmt: skip
def test_copies_that_cannot_be_named_are_refused(tmp_path: Path, given: dict, code: str) -> None:
    payload = {"from": r"h\.0\.(.)", "to": r"x.${i}.\1"} | given
    assert [d.code for d in problems(tmp_path, QK, {"copy": payload})] == [code]


@pytest.mark.parametrize(("pattern", "over"), [(r"a\.(?P<i>\d+)", "i"), (r"a\.(\d+)", "1")])
def test_a_gap_of_any_size_is_closed_by_the_move_that_the_message_writes(
    tmp_path: Path, pattern: str, over: str
) -> None:
    tensors = {f"a.{number}": np.full(2, number, np.float32) for number in (0, 1, 9, 10)}
    stack = {"stack": {"from": pattern, "to": "all", "over": over}}
    (error,) = problems(tmp_path, tensors, stack)
    first, template = re.findall(r"those from (\d+) on.*'(\$.*?)'", error.hint)[0]
    after = pattern.replace(r"\d+", f"{first}|1[0-9]")
    done = run_plan(tmp_path, tensors, [{"move": {"from": after, "to": f"a.{template}"}}, stack])
    assert done["all"][:, 0].tolist() == [0, 1, 9, 10]
