"""Models whose experts were trained apart become one with the experts of all (FlexOlmo)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import captured, describe, to
from brainsurgery_jax.structure.experts import GROUPS, NUMBER, ExpertNames
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.structure.proof import preserve

_TAIL = "(?P<tail>.+)"


def join_experts(view: View, which: ModelAsked, others: Sequence[str], public: int, *, prove: bool) -> Iterator[Edit]:
    """What the op `expert_join` does. `public`: the first experts, which all have in common."""
    first = ExpertNames(describe(view, which))
    joined = [ExpertNames(describe(view, which._replace(alias=other))) for other in others]
    for other in joined:
        _refuse_unlike(first, other, public)
    steps, count = list[Substep](), first.count
    for other in joined:
        if first.stacked:
            count += other.count - public
            steps += _compare_stacked(first, other, public)
            continue
        for number in range(public):
            common = to(first.model.alias, first.expert(str(number), _TAIL))
            same = {"left": common, "right": to(other.model.alias, r"\g<0>")}
            steps.append(Substep("assert", {"identical": same}))
        for number in range(public, other.count):
            source = to(other.model.alias, other.expert(str(number), _TAIL))
            steps.append(
                Substep("copy", {"from": source, "to": to(first.model.alias, first.named(str(count), r"\g<tail>"))})
            )
            count += 1
    steps += _rows(first, joined, public)
    patch = set_dims(first.model, {NUMBER: count})
    yield preserve(view, first.model, [*steps, *first.model.configure(patch)], prove=prove,
                   after=lambda copy: _opt_out(first, copy, patch))  # fmt: skip


def _opt_out(first: ExpertNames, copy: str, patch: Mapping[str, object]) -> Iterator[Substep]:
    """The steps that take the experts of all others out of a copy again."""
    yield Substep("config", {"patch": patch, "alias": copy})
    part = {"part": first.model.place.part} if first.model.place.part else {}
    yield Substep("expert_prune", {"keep": list(range(first.count)), "alias": copy, **part})


def _refuse_unlike(first: ExpertNames, other: ExpertNames, public: int) -> None:
    """Refuse experts that no router could choose from together."""
    if first.stacked != other.stacked:
        alone = next(each.model.alias for each in (first, other) if each.stacked)
        hint = f"Put `- experts: {{names: separate, alias: {alone}}}` before this step."
        raise Refusal("structure-experts", f"the experts of '{alone}' are in one tensor, and others are not",
                      key="others", hint=hint)  # fmt: skip
    mine, its = ((each.model.place.kind, each.head, *map(each.model.size, "DM")) for each in (first, other))
    grouped = first.model.place.config.get(GROUPS)
    if mine != its or (isinstance(grouped, int) and grouped > 1):
        names = f"'{first.model.alias}' and '{other.model.alias}'"
        raise Refusal("structure-experts", f"{names} are not of one type with experts of one size, in one group",
                      key="others", hint="Join models that were trained from the same one.")  # fmt: skip
    if public >= min(first.count, other.count):
        message = f"'{other.model.alias}' has {other.count} experts, and the first {public} are said to be in both"
        raise Refusal("structure-experts", message, key="public", hint="Give fewer: 1, or 0 if they share none.")


def _compare_stacked(first: ExpertNames, other: ExpertNames, public: int) -> Iterator[Substep]:
    """The asserts that the first experts are the same, in tensors that hold all of a layer."""
    start = f"{first.head}*.{first.own.stacked}."
    for part in first.model.parts if public else ():
        if part.starred.startswith(start):
            left = {"alias": first.model.alias, "name": captured(part.starred), "slice": f"[:{public}]"}
            right = {"alias": other.model.alias, "name": r"\g<0>", "slice": f"[:{public}]"}
            yield Substep("assert", {"identical": {"left": left, "right": right}})


def _rows(first: ExpertNames, joined: Sequence[ExpertNames], public: int) -> Iterator[Substep]:
    """The steps that give routers the rows of all experts, and other tensors with an entry for each."""
    for part in first.model.parts:
        if (axis := part.axis_with({NUMBER})) is not None:
            names = {f"m{at}": to(other.model.alias, r"\g<0>") for at, other in enumerate(joined)}
            own = f"[{':, ' * axis}{public}:]"
            rows = ", ".join(["w", *(f"{name}{own}" for name in names)])
            source = {"w": to(first.model.alias, captured(part.starred)), **names}
            target = to(first.model.alias, r"\g<0>")
            yield Substep("compute", {"from": source, "expr": f"concat([{rows}], axis={axis})", "to": target})
