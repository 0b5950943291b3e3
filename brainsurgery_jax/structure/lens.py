"""A tuned lens and the readout of a model, folded into matrices around one normalization without weights."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Expand, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, describe, to
from brainsurgery_jax.structure.given import HEAD, LAST_NORM

TRANSLATOR = r"(\d+)\.{}"
"""The names of the translators of a lens, of a layer each."""


def fold_lens(view: View, which: ModelAsked, lens: str) -> Iterator[Edit]:
    """What the op `fold_lens` does."""
    model = describe(view, which)
    model.require(LAST_NORM, HEAD)
    weight, bias = model.names([f"{model.place.family.last_norm}.{kind}" for kind in ("weight", "bias")])
    known = model.given is not None or (model.kind is not None and model.kind.roles)
    if not known or weight not in model.kin or "logits_scaling" in model.place.config:
        raise Refusal("structure-model", f"it is not known how a {model.place.kind} reads its last layer", key="alias",
                      hint="Write the readout with `compute`.")  # fmt: skip
    view.names(lens)  # refused if there is no such alias
    norms = model.norms
    yield Expand(
        (*_translate(lens, model.size("D"), centred=norms.centred), *_read(model, lens, weight, bias, norms.unit))
    )


def _translate(lens: str, width: int, *, centred: bool) -> Iterator[Substep]:
    """The steps that make x + A x + b one linear map, and subtract the mean as LayerNorm would."""
    without = ("({0})", "({0} - mean({0}, axis=0, keepdims=True))")[centred]
    for kind, expr in (("weight", f"(w + eye({width}))"), ("bias", "w")):
        source = {"w": {"alias": lens, "name": TRANSLATOR.format(kind)}}
        yield Substep("compute", {"from": source, "expr": without.format(expr)})


def _read(model: Described, lens: str, weight: str, bias: str, unit: int) -> Iterator[Substep]:
    """The steps that fold the gain and the bias of the last norm into the output table (or the tied one)."""
    table = next(name for pair in model.tied for name in pair if name in model.kin)
    gain = "g" if unit else "(g + 1)"
    yield Substep("compute", {"from": {"w": model.ref(table), "g": to(model.alias, weight)}, "expr": f"w * {gain}",
                              "to": to(lens, "readout.weight")})  # fmt: skip
    own = table.removesuffix("weight") + "bias"
    if bias in model.kin:
        both = {"b": to(model.alias, own)} if own in model.kin else {}
        source = {"w": model.ref(table), "n": to(model.alias, bias), **both}
        yield Substep("compute", {"from": source, "expr": "w @ n + b" if both else "w @ n",
                                  "to": to(lens, "readout.bias")})  # fmt: skip
    elif own in model.kin:
        yield Substep("copy", {"from": model.ref(own), "to": to(lens, "readout.bias")})
