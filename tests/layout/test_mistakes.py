"""What is wrong with a layout file, or with a config for it: all of it at once, each mistake at its place."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.parse import parse_layout
from brainsurgery_jax.layout.proof import prove

HEAD = """
layout: mine
doc: for tests
dims: {D: width, H: [head, width // heads], L: layers}
options: {scan: true}
ranges: {i: L}
rules:
"""
CONFIG = {"width": 12, "head": 3, "layers": 2}


def layout(rules: str) -> Layout:
    return parse_layout(HEAD + dedent(rules), "mine.yaml")


def mistakes(rules: str, config: dict[str, Any] | None = None) -> list[str]:
    """Every mistake, those of the file before those for a config; hints left out."""
    with pytest.raises(PlanError) as caught:
        bind(layout(rules), CONFIG if config is None else config)
    return [str(d).splitlines()[0] for d in caught.value.diagnostics]


def test_every_mistake_of_a_file_is_told_at_its_place() -> None:
    found = mistakes("""
        - {hf: 'a.{i}', to: 'b.{i}', shape: [D], ops: [transpse]}
        - {hf: 'c.{j}', to: 'd', shape: [X]}
        - {hf: e, too: f, shape: D}
        - {hf: 'g.{i}', to: h, shape: [D]}
        - {hf: k, to: k, shape: [D], ops: [{reshape: D}]}
    """)
    assert found == [
        "mine.yaml:9:48: ops: unknown op 'transpse'. Did you mean 'transpose'? [layout-op-unknown]",
        "mine.yaml:10:8: hf: unknown name 'j'. [layout-dim]",
        "mine.yaml:10:33: shape: unknown name 'X'. [layout-dim]",
        "mine.yaml:11:3: rule: missing key 'to' [layout-form]",
        "mine.yaml:11:11: rule: unknown key 'too'. Did you mean 'to'? [layout-key]",
        "mine.yaml:11:26: shape: expected a list of sizes, got the text 'D' [layout-form]",
        "mine.yaml:12:3: rule: only `hf` uses i, and no op joins over it [layout-family]",
        "mine.yaml:13:36: ops: reshape: expected a list of sizes, got 'D' [layout-op]",
    ]


def test_a_name_that_two_rules_give_is_no_bijection() -> None:
    found = mistakes("""
        - {hf: 'a.{i}', to: 'x.{i}', shape: [D]}
        - {hf: b, to: x.1, shape: [D]}
    """)
    assert found == [
        "mine.yaml:10:3: not a bijection: 'a.1' and 'b' both correspond to the target name 'x.1' [layout-bijection]"
    ]


def test_a_formula_that_gives_a_number_twice_is_no_bijection() -> None:
    (found,) = mistakes("- {hf: 'a.{i}', to: 'x.{i // 2}', shape: [D]}")
    assert "not a bijection: 'a.0' and 'a.1' both correspond to the target name 'x.0'" in found


def test_a_shape_that_does_not_close_tells_both_sizes() -> None:
    (found,) = mistakes("- {hf: a, to: b, shape: [D], ops: [{reshape: [H, H]}]}")
    assert found == ("mine.yaml:8:36: the rule of 'a': reshape: [12] has 12 elements, but [3, 3] has 9 [layout-shape]")


def test_a_confirmed_shape_is_compared() -> None:
    (found,) = mistakes("- {hf: a, to: b, shape: [D], ops: [{is: [H]}]}")
    assert "is: the shape here is [12], not [3]" in found


def test_a_field_that_config_lacks_is_told_with_the_rule_that_needs_it() -> None:
    found = mistakes("- {hf: a, to: b, shape: [H]}", {"width": 12, "layers": 2})
    assert found == [
        "mine.yaml:8:3: the rule of 'a': config.json has no 'head' or 'heads', which determines H. [layout-config]"
    ]


def test_a_field_that_no_rule_in_force_needs_is_not_missed() -> None:
    bound = bind(layout("""
        - {hf: a, to: b, shape: [D]}
        - {hf: c, to: d, shape: [H], unless: scan}
    """), {"width": 12, "layers": 2})  # fmt: skip
    assert [pair.hf for pair in bound.pairs] == [("a",)]


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanError, match=r"mine has no option 'skan'. Did you mean 'scan'\?"):
        bind(layout("- {hf: a, to: b, shape: [D]}"), CONFIG, {"skan": True})


def test_an_option_of_another_kind_is_refused() -> None:
    with pytest.raises(PlanError, match="the option 'scan' of mine is true or false, got 'yes'"):
        bind(layout("- {hf: a, to: b, shape: [D]}"), CONFIG, {"scan": "yes"})


def test_a_proof_reports_instead_of_raising() -> None:
    proof = prove(layout("- {hf: a, to: b, shape: [D], ops: [{stack: {axis: 0}}]}"), CONFIG)
    assert not proof.holds
    assert "there is nothing to join over the list" in str(proof.problems[0])


def test_a_proof_names_what_loses_bits() -> None:
    proof = prove(layout("""
        - {hf: a, to: b, shape: [D], ops: [{divide: sqrt(D)}]}
        - {hf: c, to: d, shape: [D], ops: [{multiply: 4}]}
        - {drop: buffer}
    """), CONFIG)  # fmt: skip
    assert proof.holds
    assert proof.lossy == ("a: scales by sqrt(D), which rounds",)
    assert proof.dropped == ("buffer: dropped if present, not restored",)


def test_a_range_of_nothing_leaves_a_rule_out() -> None:
    bound = bind(layout("- {hf: 'a.{r}', to: 'b.{r}', shape: [D], ranges: {r: L % 2}}"), CONFIG)
    assert bound.pairs == ()


def test_a_block_gives_one_rule_for_each_place() -> None:
    text = HEAD.replace("rules:", dedent("""
        blocks:
          layer:
            - {when: scan, hf: 'm.{i}', to: n, ops: [{stack: {over: i, axis: 1}}]}
            - {unless: scan, hf: 'm.{i}', to: 'n_{i}'}
        rules:
    """).strip("\n"))  # fmt: skip
    found = parse_layout(text + "- {hf: '{layer}.w', to: '{layer}.v', shape: [D]}", "mine.yaml")
    (stacked,) = bind(found, CONFIG).pairs
    assert (stacked.hf, stacked.target, stacked.target_shapes) == (("m.0.w", "m.1.w"), ("n.v",), ((12, 2),))
    apart = bind(found, CONFIG, {"scan": False}).pairs
    assert [(p.hf, p.target) for p in apart] == [(("m.0.w",), ("n_0.v",)), (("m.1.w",), ("n_1.v",))]
