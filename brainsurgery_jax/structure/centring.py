"""Means that nothing sees, taken out of what writes the residual stream and of the output table; and biases of values,
moved to where they end up."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, captured, describe
from brainsurgery_jax.structure.given import HEAD
from brainsurgery_jax.structure.projections import (
    WIDTH,
    PlacedProjection,
    output_of,
    projection,
    refuse_clipped,
    sums_values,
)  # fmt: skip
from brainsurgery_jax.structure.proof import SAME_PROBABILITIES, preserve

WORDS = "V"
_CAP = "final_logit_softcapping"
_WRITERS = ("o", "down", "expert.*.down", "shared.down")
"""The roles of the modules that add to the residual stream."""


def centre_writing(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `centre_writing` does."""
    model = describe(view, which)
    family = model.place.family
    if not model.norms.centred:
        raise Refusal("structure-model", f"'{model.alias}' is a {model.place.kind}: only where LayerNorm, which "
                      "subtracts the mean, comes before all that reads the residual stream does its mean not count "
                      "(gpt2, gpt_neox, olmo); RMSNorm sees it", key="alias", hint="Leave the step out.")  # fmt: skip
    _head(model, "the mean of a row counts where it is read as that of the output table")
    tables = (*(table for _, table in model.place.tied), *([f"{family.positions}.weight"] if family.positions else []))
    inner = [f"{module}.{kind}" for module in model.modules(*_WRITERS) for kind in ("weight", "bias")]
    writers = [name for name in model.names([*tables, *inner]) if name in model.kin]
    yield preserve(view, model, [_centre(model, name, WIDTH) for name in writers], prove=prove)


def centre_unembed(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `centre_unembed` does."""
    model = describe(view, which)
    if model.place.config.get(_CAP):
        raise Refusal("structure-model", f"config.json of '{model.alias}' has {_CAP}: what is added to all logits "
                      "counts after a soft cap", key="alias", hint="Leave the step out.")  # fmt: skip
    head = _head(model, "its mean counts for words that come in")
    bias = head.removesuffix("weight") + "bias"
    steps = [_centre(model, head, WORDS), *([_subtract(model, bias, 0)] if bias in model.kin else [])]
    yield preserve(view, model, steps, prove=prove, bounds=SAME_PROBABILITIES)


def _head(model: Described, why: str) -> str:
    """The name of the output table. Raises Refusal if there is none of its own."""
    model.require(HEAD)
    heads = [head for head, _ in model.tied]
    found = next((name for name in heads if name in model.kin), None)
    if found is None:
        if not heads:
            raise Refusal("structure-words", f"models of the family {model.place.family.name} have no output table",
                          key="alias", hint="Leave the step out.")  # fmt: skip
        raise Refusal("structure-words", f"'{model.alias}' has no '{heads[0]}', so words are tied to one table: {why}",
                      key="alias", hint="Put a step `untie` before this.")  # fmt: skip
    return found


def _centre(model: Described, starred: str, dim: str) -> Substep:
    return _subtract(model, starred, model.part_of(starred, dim)[1])


def _subtract(model: Described, starred: str, axis: int) -> Substep:
    """The step that takes the mean over an axis out of all tensors of a name."""
    return model.compute(starred, f"w - mean(w, axis={axis}, keepdims=True)")


# --- Biases of values -------------------------------------------------------------------------------------------------


def fold_value_biases(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `fold_value_biases` does."""
    model = describe(view, which)
    if not sums_values(model) or "sinks" in model.roles:  # weights beside sinks do not sum to 1
        raise Refusal("structure-model", f"it is not known that the weights of attention of a {model.place.kind} sum "
                      "to 1, and that values have a bias to fold", key="alias", hint="Leave the step out.")  # fmt: skip
    refuse_clipped(model, "values are clipped after their bias is added")
    values = projection(model, 2)
    if not values.bias:
        raise Refusal("structure-model", f"no bias of values is known in '{model.alias}', a {model.place.kind}",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    yield preserve(view, model, list(_fold(model, values)), prove=prove)


def _fold(model: Described, values: PlacedProjection) -> Iterator[Substep]:
    """The steps that move the bias of values of every layer through the matrix that reads heads."""
    matrix, out_first = output_of(model)
    target = matrix.removesuffix("weight") + "bias"
    if target not in model.kin:
        raise Refusal("structure-model", f"'{model.alias}' has no '{target}' for '{values.bias}' to go into, and its "
                      "class has no place for one", key="alias", hint="Leave the step out.")  # fmt: skip
    heads, entries = model.size("N"), values.entries.part
    groups = heads if model.sizes.values.get("K") is None else model.size("K")
    if groups != heads:  # each head of a group reads the same values
        apart = f"reshape({entries}, ({groups}, {model.size('H')}))"
        entries = f"reshape(repeat({apart}, {heads // groups}, axis=0), (-1,))"
    moved = f"m @ ({entries})" if out_first else f"({entries}) @ m"
    yield model.compute(target, f"w + {moved}", b=values.bias, m=matrix)
    without = values.entries.whole.replace("NEW", f"zeros_like({values.entries.part})")
    yield Substep("compute", {"from": {"b": {"alias": model.alias, "name": captured(values.bias)}}, "expr": without})
