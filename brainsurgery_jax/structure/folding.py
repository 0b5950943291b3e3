"""Norms whose gains move into the matrices that read their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.roles import modules_for
from brainsurgery_jax.families.tables.gpt2 import GPT2
from brainsurgery_jax.families.tables.gpt_neox import GPT_NEOX
from brainsurgery_jax.protocol import Edit, Substep, View
from brainsurgery_jax.structure.described import Described, describe
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


def fold_norms(view: View, alias: str | None, part: str | None, *, final: bool, prove: bool) -> Iterator[Edit]:
    """What the op `fold_norm` does."""
    model = describe(view, alias, part)
    kind = model.kind
    if kind is None or not READERS.keys() <= kind.roles.keys() or model.place.family is GPT_NEOX:
        raise Refusal("structure-model", f"the norms of a {model.place.kind} do not fold: they come after what they "
                      "normalize, or it is not known what reads them", key="alias",
                      hint="Leave the step out.")  # fmt: skip
    _refuse_stacked(model)
    affine = model.place.family is GPT2
    readings = list(_readings(model, final))
    fold = _fold_affine if affine else _fold_gain
    yield preserve(view, model, [step for each in readings for step in fold(model, each, kind.unit)], prove=prove)


def _refuse_stacked(model: Described) -> None:
    stack = next((n for n in model.names(modules_for(model.place.family, "experts.gate_up")) if n in model.kin), None)
    if stack is not None:
        always = model.kind is not None and model.kind.experts is not None and model.kind.experts.transposed
        hint = "Leave the step out." if always else "Put `- experts: {names: separate}` before this step."
        message = f"the experts of '{model.alias}' are in one tensor, '{stack}'"
        raise Refusal("structure-model", message, key="alias", hint=hint)


def _readings(model: Described, final: bool) -> Iterator[NormReaders]:
    """What reads each norm. Raises Refusal if nothing of its own reads the last one."""
    for norm, roles in READERS.items():
        known = model.names(f"{module}.weight" for module in modules_for(model.place.family, *roles))
        found = tuple(name for name in known if name in model.kin)
        if not found:
            raise Refusal("structure-model", f"'{model.alias}' has no '{known[0]}', which reads a norm", key="alias",
                          hint="Put a step `fuse` before this if queries, keys and values are apart.")  # fmt: skip
        yield NormReaders(model.names([model.roles[norm]])[0], found)
    if final:
        (head,) = model.names(model.place.family.tied)
        if head not in model.kin:
            raise Refusal("structure-model", f"the last norm of '{model.alias}' has no '{head}' to go into",
                          key="alias",
                          hint="Put a step `untie` before this if words are tied, or add `final: false`.")  # fmt: skip
        yield NormReaders(model.names([model.place.family.last_norm])[0], (head,))


def _fill(model: Described, name: str, value: int) -> Substep:
    return Substep("fill_", {"target": model.ref(name), "mode": "constant", "value": value})


def _fold_gain(model: Described, each: NormReaders, unit: int) -> Iterator[Substep]:
    """The steps for RMSNorm: each column of the matrices takes the gain of what it reads."""
    gain = "g" if unit else "(g + 1)"
    for matrix in each.matrices:
        yield model.compute(matrix, f"w * {gain}", g=f"{each.norm}.weight")
    yield _fill(model, f"{each.norm}.weight", unit)


def _fold_affine(model: Described, each: NormReaders, unit: int) -> Iterator[Substep]:
    """The steps for LayerNorm before a matrix [in, out] with a bias, which takes that of the norm. The head has none in
    GPT-2's class, so the last norm keeps a bias, divided by the gain that its columns take."""
    (matrix,) = each.matrices
    norm, bias = f"{each.norm}.weight", f"{each.norm}.bias"
    if matrix in model.names(model.place.family.tied):
        gain = {"from": {"g": model.ref(norm)}, "expr": "g != 0"}
        yield Substep("assert", {"holds": gain})  # a bias cannot pass a gain of 0
        yield model.compute(bias, "w / g", g=norm)
        yield model.compute(matrix, "w * g", g=norm)
    else:
        whole = matrix.removesuffix("weight") + "bias"
        yield model.compute(whole, "w + n @ m", n=bias, m=matrix)
        yield model.compute(matrix, "w * reshape(g, (-1, 1))", g=norm)
        yield _fill(model, bias, 0)
    yield _fill(model, norm, unit)
