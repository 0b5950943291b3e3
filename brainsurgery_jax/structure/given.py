"""A family that a step describes itself, in the language of layouts, for a model of none that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.families.evidence import UNKNOWN, formula
from brainsurgery_jax.families.model import LAYER_NORM, RMS_NORM, Experts, Family, ModelType, NormForm
from brainsurgery_jax.families.names import expand_braces
from brainsurgery_jax.families.roles import LAYER_ROLES

KEYS = ("dims", "layers", "shapes", "writers", "roles", "norms")
NORMS = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM, "rms_norm_plus_one": NormForm(unit=0)}
"""What a step may say of norms; the last: what is stored is the weight less 1."""
EMBED, HEAD, LAST_NORM, POSITIONS = MODEL_ROLES = ("embed", "head", "norm", "positions")
"""The roles of modules that are in no layer."""
BLOCKS = {"attention": "self_attn", "mlp": "mlp"}
"""The roles of the blocks of a layer, and what they are called in every family."""
_EXPERT = "expert.*."
_WHOLES = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PARTS = (*_WHOLES, *(part for parts in _WHOLES.values() for part in parts))
_MAY_LACK = {HEAD, *_PARTS, *(f"{_EXPERT}{part}" for part in ("gate", "up", "down"))}
"""Roles whose modules a model may be without: words may be tied, and tensors in one or apart."""


def read_family(given: Mapping[str, Any], names: Set[str], known: ModelType | None) -> ModelType:
    """The class that a mapping describes, for a model with tensors of these names, with `*` for numbers; `known`: what
    is known of its `model_type`, which tells more of its config than of its names. Raises Refusal."""
    if unknown := [key for key in given if key not in KEYS]:
        near = did_you_mean(unknown[0], KEYS)
        raise refuse_given(f"a family has no key '{unknown[0]}'.{near}", f"Keys: {', '.join(KEYS)}.")
    dims = {dim: tuple(_formulas(value, f"the dim {dim}")) for dim, value in _mapping(given, "dims").items()}
    shapes = _read_shapes(given, dims)
    layers = _read_layers(given, dims)
    roles = _read_roles(given, layers, names)
    norms = given.get("norms")
    if norms is not None and norms not in NORMS:
        near = did_you_mean(str(norms), NORMS)
        raise refuse_given(f"there are no norms {norms!r}.{near}", f"Known are {', '.join(NORMS)}.")
    writers = tuple(_formulas(given.get("writers", []), "writers", parse=False))
    family = _make_family(dims, layers, shapes, roles, writers)
    lost = [name for name in shapes if name not in names and name not in _partial(family)]
    if lost:
        near = did_you_mean(lost[0], names)
        raise refuse_given(f"there is no tensor '{lost[0]}', with `*` for numbers.{near}", "Correct the name.")
    inner = {role: module for role, module in roles.items() if role in LAYER_ROLES}
    return replace(known or ModelType("", family, ""), name="", family=family, unfused=(), roles=inner,
                   experts=_read_experts(roles, dims), norms=None if norms is None else NORMS[norms])  # fmt: skip


def refuse_given(message: str, hint: str) -> Refusal:
    """An error about what a step says of a model."""
    return Refusal("structure-model", message, key="family", hint=hint)


def _make_family(
    dims: Mapping[str, tuple[str, ...]], layers: str, shapes: Mapping[str, str], roles: Mapping[str, str],
    writers: tuple[str, ...],
) -> Family:  # fmt: skip
    tied = ((f"^{roles[HEAD]}.weight", f"{roles[EMBED]}.weight"),) if {HEAD, EMBED} <= roles.keys() else ()
    fused = {
        f"{layers}.{roles[whole]}.{kind}": tuple(f"{layers}.{roles[part]}.{kind}" for part in parts)
        for whole, parts in _WHOLES.items() if {whole, *parts} <= roles.keys()
        for kind in ("weight", "bias") if f"{layers}.{roles[whole]}.{kind}" in shapes
    }  # fmt: skip
    standard = {EMBED: "embed_tokens", LAST_NORM: "ln_final", HEAD: "lm_head"}
    named = {roles[role]: name for role, name in standard.items() if role in roles}
    blocks = {f"{layers}.{roles[role]}": f"layers.*.{name}" for role, name in BLOCKS.items() if role in roles}
    return Family(
        name="given", marks=(), bases=("",), dims=dims, shapes=shapes,
        counts={"L": (f"{layers[:-1]}#",)} if layers else {}, stacks={"layers": "L"} if layers else {},
        writers=writers, heads=("N", "K" if "K" in dims else "N"), tied=tied, fused=fused,
        last_norm=roles.get(LAST_NORM, ""), positions=roles.get(POSITIONS, ""),
        standard={**named, **blocks, **({layers: "layers.*"} if layers else {})} if named else {},
    )  # fmt: skip


def _partial(family: Family) -> Set[str]:
    """The tensors that hold several, and those that they hold: a model has the ones or the others."""
    return {name for whole, parts in family.fused.items() for name in (whole, *parts)}


# --- The keys ---------------------------------------------------------------------------------------------------------


def _read_shapes(given: Mapping[str, Any], dims: Mapping[str, object]) -> dict[str, str]:
    shapes = {
        name: " ".join(_formulas(axes, f"the shape of '{name}'"))
        for names, axes in _mapping(given, "shapes").items()
        for name in expand_braces(names)
    }
    for name, shape in shapes.items():
        for dim in {dim for text in shape.split() if text != UNKNOWN for dim in formula(text).names} - dims.keys():
            raise refuse_given(
                f"the shape of '{name}' uses {dim}, which is no dim", f"Give it: `dims: {{{dim}: KEY}}`."
            )
    return shapes


def _read_layers(given: Mapping[str, Any], dims: Mapping[str, object]) -> str:
    """The names of layers, with `*` (empty: none are given)."""
    layers = given.get("layers")
    if layers is None:
        return ""
    if not isinstance(layers, str) or not layers.endswith(".*") or "L" not in dims:
        hint = "Write `layers: 'model.blocks.*', dims: {L: KEY}`, where KEY of config.json counts them."
        raise refuse_given(f"expected the names of layers, and a dim L that counts them, got {layers!r}", hint)
    return layers


def _read_roles(given: Mapping[str, Any], layers: str, names: Set[str]) -> dict[str, str]:
    """The module of each role, those of layers by its name within one. Raises Refusal for one that is not there."""
    roles = _mapping(given, "roles")
    known = (*MODEL_ROLES, *LAYER_ROLES)
    for role, module in roles.items():
        if role not in known:
            near = did_you_mean(str(role), known)
            raise refuse_given(f"there is no role '{role}'.{near}", f"Known are {', '.join(known)}.")
        if not isinstance(module, str):
            raise refuse_given(
                f"expected the name of a module for the role {role}, got {module!r}", "Write `q: attn.query`."
            )
        if role in LAYER_ROLES and not layers:
            raise refuse_given(f"the role {role} is one within layers, and it is not said where these are",
                         "Add `layers: 'model.blocks.*', dims: {L: KEY}`.")  # fmt: skip
        whole = f"{layers}.{module}" if role in LAYER_ROLES else module
        if role not in _MAY_LACK and not any(name.startswith(f"{whole}.") for name in names):
            near = did_you_mean(whole, {name.rpartition(".")[0] for name in names})
            raise refuse_given(f"there is no module '{whole}' for the role {role}.{near}", "Correct the name.")
    return {str(role): str(module) for role, module in roles.items()}


def _read_experts(roles: Mapping[str, str], dims: Mapping[str, Sequence[str]]) -> Experts | None:
    """Where experts are, by the roles of their matrices; None if no role is one of an expert."""
    parts = {role.removeprefix(_EXPERT): module for role, module in roles.items() if role.startswith(_EXPERT)}
    cut = {part: module.partition(".experts.*.") for part, module in parts.items()}
    blocks = {block for block, _, _ in cut.values()}
    if cut and (len(blocks) > 1 or not all(name for _, _, name in cut.values())):
        raise refuse_given(f"the parts of experts are not in one module `experts`: {', '.join(parts.values())}",
                     "Move them to names such as `moe.experts.*.up` before this step.")  # fmt: skip
    if not cut or "router" not in roles:
        return None
    (block,) = blocks
    router = roles["router"].removeprefix(f"{block}.")
    if router == roles["router"]:
        raise refuse_given(f"the router '{router}' is not in the module '{block}' of its experts",
                     f"Move it to `{block}.router` before this step.")  # fmt: skip
    count, taken = (next(iter(dims.get(dim, ())), "") for dim in ("E", "T"))
    return Experts(block, {f"{part}_proj": name for part, (_, _, name) in cut.items()}, count, taken, "",
                   router=f"{router}.weight", stacked=f"{block}.experts")  # fmt: skip


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise refuse_given(f"expected a mapping for {key}, got {value!r}", "Write `dims: {F: d_ff}`, for instance.")
    return value


def _formulas(value: object, about: str, *, parse: bool = True) -> Iterator[str]:
    """One text or number, or a list of them, without spaces."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise refuse_given(f"expected texts for {about}, got {each!r}", "Write formulas over keys or dims.")
        text = str(each).replace(" ", "")
        if parse and text != UNKNOWN:
            try:
                formula(text)
            except Refusal as bad:
                raise refuse_given(f"{about}: {bad.message}", bad.hint) from bad
        yield text
