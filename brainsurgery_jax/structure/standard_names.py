"""Names that are the same for all decoders, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Expand, Substep, View
from brainsurgery_jax.structure.described import Described, captured, describe, filled, to


def rename_to_standard(view: View, alias: str | None, part: str | None) -> Iterator[Edit]:
    """What the op `standard_names` does."""
    model = describe(view, alias, part)
    family = model.place.family
    if not family.standard:
        raise Refusal("structure-model", f"there are no standard names for models of the family {family.name}",
                      key="alias", hint="Rename them by steps `move`.")  # fmt: skip
    yield Expand((*_untie(model), *_rename(model)))


def _untie(model: Described) -> Iterator[Substep]:
    """The step that gives a model whose words are tied a head of its own."""
    for head, table in (model.names(pair) for pair in model.place.family.tied.items()):
        if head not in model.kin and table in model.kin:
            yield Substep("copy", {"from": model.ref(table), "to": to(model.alias, _name(model, head))})


def _rename(model: Described) -> Iterator[Substep]:
    """One step for all tensors whose names differ in numbers only."""
    for starred in model.kin:
        if (name := _name(model, starred)) != starred:
            source = {"alias": model.alias, "name": captured(starred)}
            yield Substep("move", {"from": source, "to": to(model.alias, filled(name))})


def _name(model: Described, starred: str) -> str:
    """The standard name of a tensor: its module has one, or one of those around it; others only lose the prefix."""
    table = {model.names([f"{module}."])[0]: name for module, name in model.place.family.standard.items()}
    found = max((start for start in table if starred.startswith(start)), key=len, default=None)
    if found is not None:
        return f"{table[found]}.{starred.removeprefix(found)}"
    return starred.removeprefix(model.place.base)
