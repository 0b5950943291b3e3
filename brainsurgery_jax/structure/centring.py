"""Means that nothing sees, taken out of what writes the residual stream and of the output table; and biases of values,
moved to where they end up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.names import expand_braces
from brainsurgery_jax.protocol import Edit, Substep, View
from brainsurgery_jax.structure.described import Described, TensorPart, describe
from brainsurgery_jax.structure.proof import SAME_PROBABILITIES, preserve

WIDTH, WORDS = "D", "V"

_CENTRED = ("gpt2", "gpt_neox")
"""Every `model_type` in which LayerNorm, which subtracts the mean, comes before all that reads the stream."""
_CAP = "final_logit_softcapping"


def centre_writing(view: View, alias: str | None, part: str | None, *, prove: bool) -> Iterator[Edit]:
    """What the op `centre_writing` does."""
    model = describe(view, alias, part)
    family = model.place.family
    if str(model.place.kind) not in _CENTRED:
        raise Refusal("structure-model", f"'{model.alias}' is a {model.place.kind}: only where LayerNorm, which "
                      "subtracts the mean, comes before all that reads the residual stream does its mean not count "
                      "(gpt2, gpt_neox); RMSNorm sees it", key="alias", hint="Leave the step out.")  # fmt: skip
    _head(model, "the mean of a row counts where it is read as that of the output table")
    tables = (*family.tied.values(), f"{family.positions}.weight")
    inner = tuple(f".{name}" for text in family.writers for name in expand_braces(text))
    writers = [each for each in model.parts if each.name in tables or each.name.endswith(inner)]
    yield preserve(view, model, [_centre(model, each, WIDTH) for each in writers], prove=prove)


def centre_unembed(view: View, alias: str | None, part: str | None, *, prove: bool) -> Iterator[Edit]:
    """What the op `centre_unembed` does."""
    model = describe(view, alias, part)
    if model.place.config.get(_CAP):
        raise Refusal("structure-model", f"config.json of '{model.alias}' has {_CAP}: what is added to all logits "
                      "counts after a soft cap", key="alias", hint="Leave the step out.")  # fmt: skip
    head = _head(model, "its mean counts for words that come in")
    names = (head, head.removesuffix("weight") + "bias")
    steps = [_subtract(model, name, 0) for name in names if name in model.kin]
    yield preserve(view, model, steps, prove=prove, bounds=SAME_PROBABILITIES)


def _head(model: Described, why: str) -> str:
    """The name of the output table. Raises Refusal if there is none of its own."""
    heads = model.names(model.place.family.tied)
    found = next((name for name in heads if name in model.kin), None)
    if found is None:
        if not heads:
            raise Refusal("structure-words", f"models of the family {model.place.family.name} have no output table",
                          key="alias", hint="Leave the step out.")  # fmt: skip
        raise Refusal("structure-words", f"'{model.alias}' has no '{heads[0]}', so words are tied to one table: {why}",
                      key="alias", hint="Put a step `untie` before this.")  # fmt: skip
    return found


def _centre(model: Described, part: TensorPart, dim: str) -> Substep:
    axis = part.axis_with({dim})
    assert axis is not None
    return _subtract(model, part.starred, axis)


def _subtract(model: Described, starred: str, axis: int) -> Substep:
    """The step that takes the mean over an axis out of all tensors of a name."""
    return model.compute(starred, f"w - mean(w, axis={axis}, keepdims=True)")


# --- Biases of values -------------------------------------------------------------------------------------------------


class ValueBias(NamedTuple):
    """Where the bias of values is, `v`: its name, an expression for its entries (one for each column of the heads), one
    for the tensor `w` without it; what maps heads to the stream: the name of the matrix, whether it is [in, out]."""

    name: str
    entries: str
    without: str
    matrix: str
    transposed: bool


CLIP = "clip_qkv"


def sums_values(model: Described) -> bool:
    """Whether queries, keys and values are apart, and attention sums up values and nothing else."""
    return {"q", "k", "v", "o"} <= model.roles.keys()


def _has_value_biases(model: Described) -> bool:
    """Whether it is known where biases of values are, and weights of attention sum to 1: those beside sinks do not."""
    fused = str(model.place.kind) in ("gpt2", "gpt_neox")
    return fused or (sums_values(model) and "sinks" not in model.roles)


def fold_value_biases(view: View, alias: str | None, part: str | None, *, prove: bool) -> Iterator[Edit]:
    """What the op `fold_value_biases` does."""
    model = describe(view, alias, part)
    _refuse_values(model)
    found = [each for each in _value_biases(model) if each.name in model.kin]
    if not found:
        raise Refusal("structure-model", f"no bias of values is known in '{model.alias}', a {model.place.kind}",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    steps = [step for each in found for step in _fold(model, each)]
    yield preserve(view, model, steps, prove=prove)


def _refuse_values(model: Described) -> None:
    if not _has_value_biases(model):
        raise Refusal("structure-model", f"it is not known that the weights of attention of a {model.place.kind} sum "
                      "to 1, and that values have a bias to fold", key="alias", hint="Leave the step out.")  # fmt: skip
    if model.place.config.get(CLIP) is not None:
        raise Refusal("structure-model", f"config.json of '{model.alias}' has {CLIP}: values are clipped after their "
                      "bias is added", key="alias", hint="Leave the step out.")  # fmt: skip


def _value_biases(model: Described) -> Iterator[ValueBias]:
    """Where the family keeps biases of values."""
    kind = str(model.place.kind)
    heads, width = model.size("N"), model.size("H")
    if kind == "gpt2":
        fused, alone, matrix = _values_within(model)
        start = 2 * heads * width
        yield ValueBias(fused, f"v[{start}:]", f"concat([w[:{start}], zeros_like(w[{start}:])], axis=0)", matrix, True)
        yield ValueBias(alone, "v", "zeros_like(w)", matrix, True)
    elif kind == "gpt_neox":
        fused, alone, matrix = _values_within(model)
        three = f"reshape({{}}, ({heads}, 3, {width}))"
        own = three.format("w")
        without = f"reshape(concat([{own}[:, :2], zeros_like({own}[:, 2:])], axis=1), (-1,))"
        yield ValueBias(fused, f"reshape({three.format('v')}[:, 2:], (-1,))", without, matrix, False)
        yield ValueBias(alone, "v", "zeros_like(w)", matrix, False)
    else:
        bias, matrix = model.names([f"{model.roles['v']}.bias", f"{model.roles['o']}.weight"])
        shared = model.size("K")
        every = f"reshape(repeat(reshape(v, ({shared}, {width})), {heads // shared}, axis=0), (-1,))"
        yield ValueBias(bias, "v" if shared == heads else every, "zeros_like(w)", matrix, False)


def _values_within(model: Described) -> list[str]:
    """The bias of fused queries, keys and values, that of values where they are apart, and the matrix behind."""
    whole = f"{model.roles['qkv']}.bias"
    return model.names([whole, model.place.family.fused[whole][2], f"{model.roles['o']}.weight"])


def _fold(model: Described, each: ValueBias) -> Iterator[Substep]:
    """The steps that move the bias of values of every layer through the matrix that reads heads."""
    target = each.matrix.removesuffix("weight") + "bias"
    if target not in model.kin:
        raise Refusal("structure-model", f"'{model.alias}' has no '{target}' for '{each.name}' to go into, and its "
                      "class has no place for one", key="alias", hint="Leave the step out.")  # fmt: skip
    moved = f"({each.entries}) @ m" if each.transposed else f"m @ ({each.entries})"
    yield model.compute(target, f"w + {moved}", v=each.name, m=each.matrix)
    yield model.compute(each.name, each.without)
