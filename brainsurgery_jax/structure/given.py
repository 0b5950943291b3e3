"""A family that a step describes itself, in the language of layouts, for a model of none that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.families.evidence import UNKNOWN, formula
from brainsurgery_jax.families.model import Family, FamilyPlace
from brainsurgery_jax.families.names import expand_braces, kin_of
from brainsurgery_jax.protocol import View
from brainsurgery_jax.structure.described import Described, choose_alias, describe

KEYS = ("dims", "layers", "shapes", "writers")
HINT = "Describe it in the step, `family: {dims: ..., layers: ..., shapes: ...}`, as `docs/structure.md` shows."


def describe_by(view: View, alias: str | None, part: str | None, given: Mapping[str, Any] | None) -> Described:
    """The model under an alias, by what a step says of it, or by the family that its names show. Raises Refusal."""
    if given is None:
        return describe(view, alias, part, hint=HINT)
    chosen = choose_alias(view, alias)
    kin = kin_of({name: view.fetch(chosen, name).aval for name in view.names(chosen)})
    found = view.config(chosen, "alias")
    whole = found[1] if found is not None and isinstance(found[1], Mapping) else {}
    own = whole.get(part) if part else whole
    if not isinstance(own, Mapping):
        raise _refusal(f"config.json of '{chosen}' has no part '{part}'", "Leave `part` out.")
    family = _read(given)
    missing = [name for name in family.shapes if name not in kin]
    if missing:
        near = did_you_mean(missing[0], kin)
        raise _refusal(f"'{chosen}' has no tensor '{missing[0]}', with `*` for numbers.{near}", "Correct the name.")
    return Described(chosen, FamilyPlace(family, part or "", own, whole, "", ""), kin)


def _refusal(message: str, hint: str) -> Refusal:
    return Refusal("structure-model", message, key="family", hint=hint)


def _read(given: Mapping[str, Any]) -> Family:
    """The family that a mapping describes. Raises Refusal."""
    if unknown := [key for key in given if key not in KEYS]:
        near = did_you_mean(unknown[0], KEYS)
        raise _refusal(f"a family has no key '{unknown[0]}'.{near}", f"Keys: {', '.join(KEYS)}.")
    dims = {dim: tuple(_formulas(value, f"the dim {dim}")) for dim, value in _mapping(given, "dims").items()}
    shapes = {
        name: " ".join(_formulas(axes, f"the shape of '{name}'"))
        for names, axes in _mapping(given, "shapes").items()
        for name in expand_braces(names)
    }
    for name, shape in shapes.items():
        for dim in {dim for text in shape.split() if text != UNKNOWN for dim in formula(text).names} - dims.keys():
            raise _refusal(f"the shape of '{name}' uses {dim}, which is no dim", f"Give it: `dims: {{{dim}: KEY}}`.")
    layers = given.get("layers")
    if layers is not None and (not isinstance(layers, str) or not layers.endswith(".*") or "L" not in dims):
        hint = "Write `layers: 'model.blocks.*', dims: {L: KEY}`, where KEY of config.json counts them."
        raise _refusal(f"expected the names of layers, and a dim L that counts them, got {layers!r}", hint)
    return Family(
        name="given", marks=(), bases=("",), dims=dims, shapes=shapes,
        counts={"L": (f"{layers[:-1]}#",)} if layers else {}, stacks={"layers": "L"} if layers else {},
        writers=tuple(_formulas(given.get("writers", []), "writers", parse=False)),
        heads=("N", "K" if "K" in dims else "N"),
    )  # fmt: skip


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise _refusal(f"expected a mapping for {key}, got {value!r}", "Write `dims: {F: d_ff}`, for instance.")
    return value


def _formulas(value: object, about: str, *, parse: bool = True) -> Iterator[str]:
    """One text or number, or a list of them, without spaces."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise _refusal(f"expected texts for {about}, got {each!r}", "Write formulas over keys or dims.")
        text = str(each).replace(" ", "")
        if parse and text != UNKNOWN:
            try:
                formula(text)
            except Refusal as bad:
                raise _refusal(f"{about}: {bad.message}", bad.hint) from bad
        yield text
