"""Names that are the same for all decoders, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.names import Kin, kin_of
from brainsurgery_jax.protocol import Edit, Expand, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, captured, choose_alias, describe, filled, pattern, to


def rename_to_standard(view: View, which: ModelAsked) -> Iterator[Edit]:
    """What the op `standard_names` does."""
    model = _described(view, which, "alias")
    moves = {starred: _name(model, starred) for starred in model.kin}
    yield Expand((*_untie(model), *_move(model.alias, moves)))


def rename_from_standard(view: View, which: ModelAsked, like: str) -> Iterator[Edit]:
    """What `standard_names` does with `like`: its inverse, by the names of the model that it began with."""
    chosen, model = choose_alias(view, which.alias), _described(view, which._replace(alias=like), "like")
    if chosen == like:
        raise Refusal("structure-model", f"'{like}' is both the model to rename and the one with the names",
                      key="like", hint="Name the model as it was before, under another alias.")  # fmt: skip
    kin = kin_of({name: view.fetch(chosen, name).aval for name in view.names(chosen)})
    own = {_name(model, starred): starred for starred in model.kin}
    heads = {_name(model, head): _name(model, table) for head, table in _added_heads(model)}
    _refuse_unknown(kin, [*own, *heads], like)
    added = {head: table for head, table in heads.items() if head in kin and table in kin}
    yield Expand((*_tie(chosen, added), *_move(chosen, {name: own[name] for name in kin if name in own})))


def _described(view: View, which: ModelAsked, key: str) -> Described:
    """A model of a family with standard names. Raises Refusal."""
    model = describe(view, which)
    if not model.place.family.standard:
        name = model.place.family.name
        raise Refusal("structure-model", f"there are no standard names for models of the family {name}",
                      key=key, hint="Rename them by steps `move`.")  # fmt: skip
    return model


def _refuse_unknown(kin: Mapping[str, Kin], known: list[str], like: str) -> None:
    """Refuse a tensor whose name has no counterpart in the model with the names."""
    for starred, found in kin.items():
        if starred not in known:
            name = next(iter(found.numbers.values()))
            raise Refusal("structure-model", f"'{like}' has no tensor whose standard name is '{name}'", key="like",
                          hint="Move it to another alias before this step, or delete it.")  # fmt: skip


def _added_heads(model: Described) -> Iterator[tuple[str, str]]:
    """The head that a model whose words are tied lacks, and the table that takes its place."""
    for head, table in model.tied:
        if head not in model.kin and table in model.kin:
            yield head, table


def _untie(model: Described) -> Iterator[Substep]:
    """The step that gives a model whose words are tied a head of its own."""
    for head, table in _added_heads(model):
        yield Substep("copy", {"from": model.ref(table), "to": to(model.alias, _name(model, head))})


def _tie(alias: str, heads: Mapping[str, str]) -> Iterator[Substep]:
    """The steps that remove such a head, which must still be what its table is."""
    for head, table in heads.items():
        source = {"alias": alias, "name": pattern(head)}
        yield Substep("assert", {"identical": {"left": source, "right": to(alias, table)}})
        yield Substep("delete", {"target": source})


def _move(alias: str, names: Mapping[str, str]) -> Iterator[Substep]:
    """One step for all tensors whose names differ in numbers only."""
    for starred, name in names.items():
        if name != starred:
            yield Substep("move", {"from": {"alias": alias, "name": captured(starred)}, "to": to(alias, filled(name))})


def _name(model: Described, starred: str) -> str:
    """The standard name of a tensor: its module has one, or one of those around it; others only lose the prefix."""
    table = {model.names([f"{module}."])[0]: name for module, name in model.place.family.standard.items()}
    found = max((start for start in table if starred.startswith(start)), key=len, default=None)
    if found is not None:
        return f"{table[found]}.{starred.removeprefix(found)}"
    return starred.removeprefix(model.place.base)
