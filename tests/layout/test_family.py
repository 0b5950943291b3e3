"""Layouts and the description of a family: dims and shapes are taken from it, and names are those that it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.families.compare import places
from brainsurgery_jax.families.evidence import formula, shape_table, sizes_of
from brainsurgery_jax.families.names import Kin, kin_of
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.library import layout_names, load_layout
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.parse import parse_layout

MINE = """\
layout: mine
doc: mine
family: {family}
models: [llama]
ranges: {{i: L}}
rules:
  - {rule}
example: {{vocab_size: 96, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2}}
"""
K_PROJ = "{hf: 'model.layers.{i}.self_attn.k_proj.weight', to: 'l{i}.k', ops: [transpose]}"

DESCRIBED = [name for name in layout_names() if load_layout(name).models and name != "flax-dinov2"]
"""DINOv2 has only its attention in common with the family that it is recognised as."""
OUTSIDE = (
    "logit_", "classifier.", "multi_modal_projector.", "visual_projection.", "text_projection.", "vision_model.head.",
    "text_model.head.", "cls.seq_relationship.", "bert.embeddings.position_ids",
)  # fmt: skip
"""Heads of tasks and what joins towers: no table has them."""


def read(rule: str, family: str = "llama", more: str = "") -> Layout:
    return parse_layout(MINE.format(family=family, rule=rule) + more, "mine.yaml")


def shapes_in(layout: Layout, starred: str) -> Iterator[tuple[int | None, ...]]:
    """The shapes that the tables of families have for a name, by the sizes of the layout's example."""
    config = {"model_type": layout.models[0], **layout.example}
    for place in places(config, avals(layout)):
        sizes, table = sizes_of(place.family, place.config), shape_table(place.family)
        for start, mark in ((place.base, ""), (place.prefix, "^"), ("", "^")):
            for shape in table.get(mark + starred.removeprefix(start), ()) if starred.startswith(start) else ():
                yield tuple(None if text == "_" else sizes.of(formula(text)) for text in shape)


def avals(layout: Layout) -> dict[str, Kin]:
    bound = bind(layout, layout.example, dict.fromkeys(layout.choices, False))
    return kin_of({n: Aval(s, FLOAT32) for p in bound.pairs for n, s in zip(p.hf, p.hf_shapes, strict=True)})


@pytest.mark.parametrize("name", DESCRIBED)
def test_names_and_shapes_of_a_layout_are_those_of_the_family(name: str) -> None:
    layout = load_layout(name)
    inside = {starred: kin for starred, kin in avals(layout).items() if not starred.startswith(OUTSIDE)}
    assert len(inside) > 10
    for starred, kin in inside.items():
        known = list(shapes_in(layout, starred))
        for aval in kin.first:
            fitting = [s for s in known if len(s) == len(aval.shape)]
            assert any(all(n in (None, m) for n, m in zip(s, aval.shape, strict=True)) for s in fitting), starred


def test_a_layout_takes_dims_and_shapes_from_its_family() -> None:
    layout = read(K_PROJ)
    first, second = bind(layout, layout.example).pairs
    assert (first.hf, first.target, first.hf_shapes) == (("model.layers.0.self_attn.k_proj.weight",), ("l0.k",),
                                                         ((16, 32),))  # fmt: skip
    assert second.target_shapes == ((32, 16),)


@pytest.mark.parametrize(
    ("rule", "family", "more", "why"),
    [
        (K_PROJ, "lama", "", r"family: there is no family 'lama'\. Did you mean 'llama'\?"),
        (K_PROJ, "llama", "dims: {D: hidden_size}\n", "dims.D: the family has this dim"),
        (K_PROJ.replace("k_proj", "key"), "llama", "", "hf: the family 'llama' has no tensor 'model.layers.{i}.self_a"),
        (K_PROJ.replace("k_proj", "q_norm"), "llama", "", r"may be \[H\] or \[N\*H\] in the family 'llama'"),
        (
            "{tie: [lm_head.weight, model.embed.weight]}",
            "llama",
            "",
            "tie: the family 'llama' has no tensor",
        ),
    ],
)
def test_what_does_not_agree_with_the_family_is_refused(rule: str, family: str, more: str, why: str) -> None:
    with pytest.raises(PlanError, match=why.replace("{i}", r"\{i\}")):
        read(rule, family, more)


def test_the_shape_that_is_meant_settles_it() -> None:
    rule = K_PROJ.replace("k_proj", "q_norm").replace("ops: [transpose]", "shape: [H]")
    layout = read(rule)
    assert bind(layout, layout.example).pairs[0].hf_shapes == ((8,),)
