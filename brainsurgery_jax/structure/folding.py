"""Norms whose gains move into the matrices that read their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.roles import LAYER_ROLES
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, describe, names_in
from brainsurgery_jax.structure.given import HEAD, LAST_NORM, refuse_given
from brainsurgery_jax.structure.projections import WIDTH
from brainsurgery_jax.structure.proof import preserve

READERS = {
    "attention_norm": ("q", "k", "v", "qkv", "q_a", "kv_a"),
    "mlp_norm": (
        "gate", "up", "gate_up", "router", "expert.*.gate", "expert.*.up", "shared_gate", "shared.gate", "shared.up",
    ),
}  # fmt: skip
"""What reads the norms before attention and MLP, by roles."""


class NormReaders(NamedTuple):
    """A norm, without `.weight`, and the matrices that read its result: names of the checkpoint, with `*`."""

    norm: str
    matrices: tuple[str, ...]


def fold_norms(view: View, which: ModelAsked, *, final: bool, prove: bool) -> Iterator[Edit]:
    """What the op `fold_norm` does."""
    model = describe(view, which)
    model.require(*READERS)
    if model.kind is None or not READERS.keys() <= model.roles.keys():
        raise Refusal("structure-model", f"the norms of a {model.place.kind} do not fold: they come after what they "
                      "normalize, or it is not known what reads them", key="alias",
                      hint="Leave the step out.")  # fmt: skip
    _refuse_stacked(model)
    readings = list(_readings(model, final))
    _refuse_strange(model, readings)
    yield preserve(view, model, [step for each in readings for step in _fold(model, each)], prove=prove)


def _refuse_stacked(model: Described) -> None:
    stack = next((n for n in model.names(model.modules("experts.gate_up")) if n in model.kin), None)
    if stack is not None:
        always = model.kind is not None and model.kind.experts is not None and model.kind.experts.transposed
        hint = "Leave the step out." if always else "Put `- experts: {names: separate}` before this step."
        message = f"the experts of '{model.alias}' are in one tensor, '{stack}'"
        raise Refusal("structure-model", message, key="alias", hint=hint)


def _refuse_strange(model: Described, readings: Sequence[NormReaders]) -> None:
    """Refuse a matrix of a layer that may read a norm, where the step alone says what does."""
    named = model.names(f"{module}.weight" for module in model.modules(*LAYER_ROLES))
    known = {*named, *(name for each in readings for name in each.matrices)}
    axes = {part.starred: {dim for text in part.axes for dim in names_in(text)} for part in model.parts}
    start = model.layered()
    for starred, kin in model.kin.items() if model.given is not None else ():
        matrix = starred.startswith(start) and any(len(aval.shape) > 1 for aval in kin.first)
        if matrix and starred not in known and WIDTH in axes.get(starred, {WIDTH}):
            raise refuse_given(f"it is not known whether '{starred}' reads a norm",
                         "Give its module a role, or its shape, with `_` for each axis, if it reads none.")  # fmt: skip


def _readings(model: Described, final: bool) -> Iterator[NormReaders]:
    """What reads each norm. Raises Refusal if nothing of its own reads the last one."""
    found: dict[str, tuple[str, ...]] = {}
    for norm, roles in READERS.items():
        known = model.names(f"{module}.weight" for module in model.modules(*roles))
        own = tuple(name for name in known if name in model.kin)
        if not own:
            message = f"'{model.alias}' has no '{known[0] if known else roles[0]}', which reads a norm"
            raise Refusal("structure-model", message, key="alias",
                          hint="Put a step `fuse` before this if queries, keys and values are apart.")  # fmt: skip
        name = model.names([model.roles[norm]])[0]  # attention and MLP may read one norm
        found[name] = (*found.get(name, ()), *own)
    if final:
        model.require(HEAD, LAST_NORM)
        ((head, _),) = model.tied
        if head not in model.kin:
            raise Refusal("structure-model", f"the last norm of '{model.alias}' has no '{head}' to go into",
                          key="alias",
                          hint="Put a step `untie` before this if words are tied, or add `final: false`.")  # fmt: skip
        found[model.names([model.place.family.last_norm])[0]] = (head,)
    return (NormReaders(*each) for each in found.items())


def _fold(model: Described, each: NormReaders) -> Iterator[Substep]:
    """The steps for a norm: its bias goes into those of the matrices, and their entries for the stream take its gain. A
    class that has no bias for one of them keeps that of the norm, divided by the gain that the matrices take."""
    norm, bias = f"{each.norm}.weight", f"{each.norm}.bias"
    gain = "g" if model.norms.unit else "(g + 1)"
    axes = {matrix: model.part_of(matrix, WIDTH)[1] for matrix in each.matrices}
    biases = {matrix: matrix.removesuffix("weight") + "bias" for matrix in axes}
    if bias in model.kin and all(name in model.kin for name in biases.values()):
        for matrix, own in biases.items():
            yield model.compute(own, "w + m @ n" if axes[matrix] else "w + n @ m", n=bias, m=matrix)
        yield _fill(model, bias, 0)
    elif bias in model.kin:
        yield Substep("assert", {"holds": {"from": {"g": model.ref(norm)}, "expr": f"{gain} != 0"}})
        yield model.compute(bias, f"w / {gain}", g=norm)  # a bias cannot pass a gain of 0
    for matrix, axis in axes.items():
        yield model.compute(matrix, f"w * {gain}" if axis else f"w * reshape({gain}, (-1, 1))", g=norm)
    yield _fill(model, norm, model.norms.unit)


def _fill(model: Described, name: str, value: int) -> Substep:
    return Substep("fill_", {"target": model.ref(name), "mode": "constant", "value": value})
