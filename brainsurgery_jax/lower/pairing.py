"""Steps over several sets of tensors: how tensors pair up, and what happens to those that do not (`unmatched`).

The first reference of such a step is a pattern. Every other reference that it reads is a template, which names the
partner of each match. A match without a partner is unpaired. So is a tensor that a template could have named (it is in
reach, see `select/reach.py`) and that is no match's partner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import hints
from brainsurgery_jax.lower.edits import Drafts
from brainsurgery_jax.lower.state import Draft, is_meant
from brainsurgery_jax.op import TensorOp
from brainsurgery_jax.protocol import Alone, Bind, Pairing, Row
from brainsurgery_jax.select import Pattern, Ref, Template, reach_of

UNMATCHED = "unmatched"
"""The code of diagnostics on unpaired tensors."""


class Sets(NamedTuple):
    """The references of a step: its pattern, the templates that each match fills, the keys of the templates that it
    reads, and the key of the one that it writes (none: it writes the match itself)."""

    source: Ref
    pattern: Pattern
    targets: Mapping[str, Ref]
    templates: Mapping[str, Template]
    read: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def destination(self) -> str:
        """The alias that the step writes to."""
        return self.targets[self.written[0]].alias if self.written else self.source.alias

    def name(self, row: Row, key: str) -> str:
        """The name that a template yields for a match."""
        return row[1][list(self.targets).index(key)]

    def names(self, rows: Iterable[Row], key: str) -> list[str]:
        """The same for several matches."""
        at = list(self.targets).index(key)
        return [names[at] for _, names in rows]

    @property
    def is_sliced(self) -> bool:
        """Whether the step takes slices of tensors."""
        return any(ref.index is not None for ref in (self.source, *self.targets.values()))


def pair(drafts: Drafts, sets: Sets, rows: Sequence[Row]) -> Pairing:
    """The matches with a partner under every key that is read, the matches without, and the unpaired tensors under
    each such key."""
    complete = [row for row in rows if all(_may_exist(drafts, sets, row, key) for key in sets.read)]
    whole = set(map(id, complete))
    rest = [row for row in rows if id(row) not in whole]
    return Pairing(complete, rest, tuple(o for key in sets.read for o in _others(drafts, sets, rows, key)))


def _may_exist(drafts: Drafts, sets: Sets, row: Row, key: str) -> bool:
    """Whether a match has its partner, or might have it if no step had failed."""
    ref = sets.targets[key]
    space, name = drafts.space(ref.alias), sets.name(row, key)
    if name in space.names:
        return is_meant(ref, space.names[name])
    return space.tainted or name in space.unknown


def _is_of_other_kind(drafts: Drafts, sets: Sets, row: Row, key: str) -> bool:
    """Whether a match lacks its partner only because of the `kind` of the reference."""
    names, name = drafts.space(sets.targets[key].alias).names, sets.name(row, key)
    return name in names and not is_meant(sets.targets[key], names[name])


def _others(drafts: Drafts, sets: Sets, rows: Sequence[Row], key: str) -> Iterator[Alone]:
    """The tensors that a template could have named and that are no match's partner. A tensor that the `kind` of the
    pattern excludes excludes its partner, too."""
    ref, template = sets.targets[key], sets.templates[key]
    alias, ours = ref.alias, drafts.space(sets.source.alias).names
    space = drafts.space(alias, key)
    if template.literal is not None or space.tainted or space.unknown:
        return
    keys = [k for k, ref in sets.targets.items() if ref.alias == alias]
    named = {name for k in keys for name in sets.names(rows, k)}
    named |= {row[0] for row in rows} if alias == sets.source.alias else set()
    if left := [name for name, e in space.names.items() if name not in named and is_meant(ref, e)]:
        for o in reach_of(template, sets.pattern).of(left):
            if o.source not in ours or is_meant(sets.source, ours[o.source]):
                yield Alone(key, alias, o.name, o.source)


# --- What becomes of them ---------------------------------------------------------------------------------------------


class Settled(NamedTuple):
    """The matches that a step works on, the tensors that it keeps as they are, and the notes."""

    rows: list[Row]
    skipped: int = 0
    kept: tuple[Bind, ...] = ()
    note: str = ""


def settle(drafts: Drafts, sets: Sets, pairing: Pairing) -> Settled:
    """The decision of a step on its pairing. Raises Refusal."""
    step, rows, alone, others = drafts.step, pairing.rows, pairing.alone, pairing.others
    match step.unmatched:
        case "keep" | "drop" if not rows and step.lenient:
            return Settled([], skipped=len(alone))
        case "keep" | "drop" if not rows:
            raise _nothing_pairs(drafts, sets, pairing)
        case "keep":
            return Settled(rows, kept=tuple(_keep_alone(drafts, sets, pairing)))
        case "drop":
            return Settled(rows, skipped=len(alone))
        case "error" if alone or others:
            raise _refusal(drafts, sets, pairing)
    if not step.lenient and any(_is_of_other_kind(drafts, sets, row, key) for row in alone for key in sets.read):
        raise _refusal(drafts, sets, pairing)
    refused = [] if step.lenient else alone
    if any(_is_whole_pair(drafts, sets, pairing, other) for other in others):
        raise _refusal(drafts, sets, pairing._replace(alone=refused))
    if rows and refused:
        _refuse_missing(drafts, sets, pairing)
    given = [*rows, *refused]  # what is missing is refused when it is looked for
    lost = tuple(o for o in others if o.alias not in (sets.source.alias, sets.destination))
    note = f"{_describe(drafts, sets, Pairing(rows, [], lost))}: left out" if lost else ""
    return Settled(sorted(given), len(rows) + len(alone) - len(given), note=note)


def _is_whole_pair(drafts: Drafts, sets: Sets, pairing: Pairing, other: Alone) -> bool:
    """Whether a tensor is unpaired although whole checkpoints are paired: the pattern matches all tensors of one, and
    the template names another."""
    ours = drafts.space(sets.source.alias)
    meant = sum(is_meant(sets.source, e) for e in ours.names.values())
    everything = len(pairing.rows) + len(pairing.alone) == meant
    return everything and other.alias != sets.source.alias and all(map(_is_whole, (ours, drafts.space(other.alias))))


def _is_whole(space: Draft) -> bool:
    """Whether an alias came from a checkpoint or a tree and has lost no tensor since."""
    return 0 < len(space.original) <= len(space.names)


def _describe(drafts: Drafts, sets: Sets, pairing: Pairing) -> str:
    """The unpaired tensors of each alias, in words: how many, and the first."""
    parts = []
    if pairing.alone:
        by_lack = defaultdict[str, list[str]](list)
        for row in pairing.alone:
            by_lack[_list_lack(drafts, sets, row)].append(row[0])
        parts += [_count_names(names, sets.source.alias, f"no partner in {lack}") for lack, names in by_lack.items()]
    for alias in dict.fromkeys(other.alias for other in pairing.others):
        names = list(dict.fromkeys(other.name for other in pairing.others if other.alias == alias))
        parts.append(_count_names(names, alias, f"no partner in '{sets.source.alias}'"))
    return "; ".join(parts)


def _list_lack(drafts: Drafts, sets: Sets, row: Row) -> str:
    """The aliases in which a match has no partner, in words."""
    lacking = (key for key in sets.read if not _may_exist(drafts, sets, row, key))
    return " and ".join(dict.fromkeys(f"'{sets.targets[key].alias}'" for key in lacking))


def _count_names(names: Sequence[str], alias: str, what: str) -> str:
    number = f"{len(names):,} tensors" if len(names) > 1 else "1 tensor"
    return f"{number} of '{alias}' {'have' if len(names) > 1 else 'has'} {what} ({hints.list_names(names)})"


def _refusal(drafts: Drafts, sets: Sets, pairing: Pairing) -> Refusal:
    """The refusal of a step whose sets do not pair up. Its hint lists the possible remedies."""
    if not pairing.rows and not drafts.step.lenient:
        return _nothing_pairs(drafts, sets, pairing)
    message = f"the sets do not pair up: {_describe(drafts, sets, pairing)}"
    return Refusal(UNMATCHED, message, hint=_list_ways(drafts, sets, pairing))


def _list_ways(drafts: Drafts, sets: Sets, pairing: Pairing) -> str:
    """What `unmatched` can do about the tensors that do not pair up."""
    ways = [f"`unmatched: drop` leaves them out of this step: what is in '{sets.destination}' stays as it is"]
    try:
        list(_keep_alone(drafts, sets, pairing))
    except Refusal:
        pass
    else:
        ways.insert(0, f"`unmatched: keep` takes them into '{sets.destination}' as they are")
    return f"{', '.join(ways)}."


def _refuse_missing(drafts: Drafts, sets: Sets, pairing: Pairing) -> None:
    """Refuse a match without its partner where other matches have theirs: the name may be wrong, or not be there."""
    row = pairing.alone[0]
    key = next(key for key in sets.read if not _may_exist(drafts, sets, row, key))
    try:
        drafts.look_up(sets.targets[key].alias, sets.name(row, key), key)
    except Refusal as bad:
        others = f"If it is not to be there: {_list_ways(drafts, sets, pairing._replace(others=()))}"
        raise Refusal(bad.code, str(bad), key=key, hint=f"{bad.hint}\n{others}") from None


def _nothing_pairs(drafts: Drafts, sets: Sets, pairing: Pairing) -> Refusal:
    """The refusal of a step in which no tensor has a partner: `unmatched` cannot help there."""
    message = f"no match of '{sets.source}' has a partner, so there is nothing to do"
    return Refusal(UNMATCHED, f"{message}: {_describe(drafts, sets, pairing)}", hint="Compare the names on both sides.")


# --- Keeping ----------------------------------------------------------------------------------------------------------


def _keep_alone(drafts: Drafts, sets: Sets, pairing: Pairing) -> Iterator[Bind]:
    """The unpaired tensors under the names that their results would have. Raises Refusal if these are ambiguous."""
    if sets.is_sliced and (pairing.alone or pairing.others):
        raise _unclear("it takes whole tensors, and this step is about slices")
    taken = {name: "" for row in pairing.rows for name in (_result(sets, row),)}
    for alias, name, target in (*_alone(drafts, sets, pairing.alone), *_from_others(sets, pairing.others)):
        if target in taken:
            raise _unclear(f"'{alias}::{name}' and another tensor would both become '{target}'")
        if (old := drafts.space(sets.destination).names.get(target)) is not None and not _all_mean(sets, old):
            raise _unclear(f"'{sets.destination}::{target}' is {old.aval}, which `kind` leaves out of this step")
        taken[target] = name
        if (alias, name) != (sets.destination, target):
            yield Bind(sets.destination, target, drafts.fetch(alias, name), _dest(drafts, sets, target), (alias, name))


def _all_mean(sets: Sets, expr: Expr) -> bool:
    """Whether a tensor of the destination is of the kind in every reference to that alias."""
    return all(is_meant(ref, expr) for ref in (sets.source, *sets.targets.values()) if ref.alias == sets.destination)


def _result(sets: Sets, row: Row) -> str:
    return sets.name(row, sets.written[0]) if sets.written else row[0]


def _alone(drafts: Drafts, sets: Sets, rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    """Alias, name and new name of the unpaired matches."""
    for row in rows:
        if there := [key for key in sets.read if _may_exist(drafts, sets, row, key)]:
            partner = f"{sets.targets[there[0]].alias}::{sets.name(row, there[0])}"
            raise _unclear(f"'{sets.source.alias}::{row[0]}' has a partner, '{partner}', but not all")
        yield sets.source.alias, row[0], _result(sets, row)


def _from_others(sets: Sets, others: Iterable[Alone]) -> Iterator[tuple[str, str, str]]:
    """Alias, name and new name of the tensors that are no match's partner."""
    for other in others:
        if other.source is None:
            raise _unclear(f"which name '{other.alias}::{other.name}' should get cannot be told from the references")
        binding = sets.pattern.match(other.source)
        assert binding is not None, "the source of a name in reach is matched"
        template = sets.templates[sets.written[0]] if sets.written else None
        yield other.alias, other.name, template.fill(other.source, binding) if template else other.source


def _unclear(why: str) -> Refusal:
    hint = "Copy such tensors in a step of their own, and say `unmatched: drop` here."
    return Refusal(UNMATCHED, f"`unmatched: keep` is not possible: {why}", key="unmatched", hint=hint)


def _dest(drafts: Drafts, sets: Sets, target: str) -> Literal["new", "existing", "rebind"]:
    """The destination rule for the name of a kept tensor: `new`, or the rule of the step if the name exists."""
    if target not in drafts.space(sets.destination).names:
        return "new"
    op = drafts.step.op
    return op.form.dest if isinstance(op, TensorOp) else "rebind"
