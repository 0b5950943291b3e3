"""Norms whose gains move into the matrices that read their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.tables.gpt2 import GPT2
from brainsurgery_jax.protocol import Edit, Substep, View
from brainsurgery_jax.structure.described import Described, describe
from brainsurgery_jax.structure.proof import preserve

_ATTENTION = tuple(f"layers.*.self_attn.{name}_proj.weight" for name in ("q", "k", "v", "qkv"))
_MLP = tuple(f"layers.*.{name}.weight" for name in (
    "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj",
    "block_sparse_moe.gate", "block_sparse_moe.experts.*.w1", "block_sparse_moe.experts.*.w3",
))  # fmt: skip
_BEFORE = "layers.*.pre_feedforward_layernorm"
_AFTER = "layers.*.post_attention_layernorm"
UNITS: Mapping[str, int] = {
    "llama": 1, "mistral": 1, "qwen2": 1, "qwen3": 1, "phi3": 1, "mixtral": 1, "qwen3_moe": 1, "olmoe": 1, "gpt2": 1,
    "gemma2": 0, "gemma3_text": 0,
}  # fmt: skip
"""The weight of a norm that changes nothing, for every `model_type` whose norms come before what reads them."""


class NormReaders(NamedTuple):
    """A norm, without `.weight`, and the matrices that read its result: names of the checkpoint, with `*`."""

    norm: str
    matrices: tuple[str, ...]


def fold_norms(view: View, alias: str | None, part: str | None, *, final: bool, prove: bool) -> Iterator[Edit]:
    """What the op `fold_norm` does."""
    model = describe(view, alias, part)
    unit = UNITS.get(str(model.place.kind))
    if unit is None:
        raise Refusal("structure-model", f"the norms of a {model.place.kind} do not fold: they come after what they "
                      "normalize, or it is not known what reads them", key="alias",
                      hint="Leave the step out.")  # fmt: skip
    _refuse_stacked(model)
    affine = model.place.family is GPT2
    readings = list(_readings(model, final))
    fold = _fold_affine if affine else _fold_gain
    yield preserve(view, model, [step for each in readings for step in fold(model, each, unit)], prove=prove)


def _refuse_stacked(model: Described) -> None:
    (stack,) = model.names(["layers.*.mlp.experts.gate_up_proj"])
    if stack in model.kin:
        raise Refusal("structure-model", f"the experts of '{model.alias}' are in one tensor, '{stack}'", key="alias",
                      hint="Put `- experts: {names: separate}` before this step.")  # fmt: skip


def _readings(model: Described, final: bool) -> Iterator[NormReaders]:
    """What reads each norm. Raises Refusal if nothing of its own reads the last one."""
    if model.place.family is GPT2:
        tables = {"h.*.ln_1": ("h.*.attn.c_attn.weight",), "h.*.ln_2": ("h.*.mlp.c_fc.weight",)}
    else:
        middle = _BEFORE if model.names([f"{_BEFORE}.weight"])[0] in model.kin else _AFTER
        tables = {"layers.*.input_layernorm": _ATTENTION, middle: _MLP}
    for norm, matrices in tables.items():
        yield NormReaders(model.names([norm])[0], tuple(n for n in model.names(matrices) if n in model.kin))
    if final:
        (head,) = model.names(["^lm_head.weight"])
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
    if matrix.endswith("lm_head.weight"):
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
