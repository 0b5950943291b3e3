"""Experts: fewer of them, their means, and all of a layer in one tensor or each by its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import Experts
from brainsurgery_jax.protocol import Edit, Expand, ModelAsked, Substep, View
from brainsurgery_jax.structure.axes import sections
from brainsurgery_jax.structure.described import Described, captured, describe, to
from brainsurgery_jax.structure.expert_family import refuse_strange_experts
from brainsurgery_jax.structure.given import refuse_given
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.structure.proof import preserve

NUMBER = "E"
GROUPS, TAKEN_GROUPS = "n_group", "topk_group"
"""The keys of the number of groups of experts, one after another, and of how many of these a token takes."""
NEURONS = "M"
_STRIDE = 16
"""Bytes of which the rows of experts are a multiple where torch multiplies them together (`grouped_mm`)."""
SCORED = 2
"""The experts of a group whose scores are summed to choose groups (DeepSeek V3)."""


def note_rows(view: View, model: Described, width: int, dim: str, key: str) -> None:
    """Note experts of so many neurons if `transformers` 5 (torch 2.13) loads them, but cannot run them on CPUs. `dim`
    counted the neurons so far."""
    dtypes = [aval.dtype for part in model.parts if part.axis_with({dim}) is not None for aval in part.kin.first]
    size = max((dtype.bits // 8 for dtype in dtypes), default=0)
    if size and width * size % _STRIDE:
        message = (
            f"experts of {width} neurons have rows of {width * size} bytes: transformers loads them, but cannot run "
            f"them on CPUs, where torch multiplies all of a layer together if rows are a multiple of {_STRIDE}"
        )
        hint = f"Leave a multiple of {_STRIDE // size} neurons; or load them with `experts_implementation='eager'`."
        view.note("structure-experts", message, key, hint)


class ExpertNames:
    """The experts of a model: their description, and whether all of a layer are in two tensors."""

    def __init__(self, model: Described) -> None:
        model.require("router", "expert.*.up", "expert.*.down")
        kind = model.kind
        if kind is None or kind.experts is None or model.sizes.values.get(NUMBER) is None:
            raise refuse_strange_experts(model)
        self.model, self.own = model, kind.experts
        self.head = model.layered()
        self.stacked = f"{self.head}*.{self.own.stacked}.gate_up_proj" in model.kin
        self.count = model.size(NUMBER)
        if model.given is not None:
            self._refuse_strange()

    def _refuse_strange(self) -> None:
        """Refuse a tensor of a layer that may have an entry for each expert, where the step alone says what has."""
        self.model.part_of(f"{self.head}*.{self.own.block}.{self.own.router}", NUMBER)
        inner = f"{self.head}*.{self.own.block}.experts.*."
        for starred in self.model.unknown:
            if not starred.startswith(self.head) or starred.startswith(inner):
                continue
            if any(self.count in aval.shape for aval in self.model.kin[starred].first):
                message = f"'{starred}' may have an entry for each of {self.count} experts, and is not known"
                raise refuse_given(message, "Give its shape in `family`, with `_` for an axis that stays.")

    def expert(self, number: str, tail: str) -> str:
        """A pattern for tensors of experts of that number (a pattern), in every layer."""
        return rf"{re.escape(self.head)}(?P<i>\d+)\.{re.escape(self.own.block)}\.experts\.{number}\.{tail}"

    def named(self, number: str, tail: str) -> str:
        """A template for their names."""
        return rf"{self.head}\g<i>.{self.own.block}.experts.{number}.{tail}"


# --- Fewer ------------------------------------------------------------------------------------------------------------


def prune_experts(
    view: View,
    which: ModelAsked,
    keep: Sequence[int] | None,
    drop: Sequence[int] | None,
    *,
    prove: bool,
) -> Iterator[Edit]:
    """What the op `expert_prune` does."""
    layout = ExpertNames(describe(view, which))
    if (keep is None) == (drop is None):
        raise Refusal(
            "structure-experts", "give either keep or drop", key="keep", hint="Write `expert_prune: {drop: [3]}`."
        )
    key, given = ("keep", keep) if keep is not None else ("drop", drop or ())
    _check(given, layout.count, key)
    kept = [n for n in range(layout.count) if (n in given) == (keep is not None)] if keep is None else list(keep)
    if not kept:
        raise Refusal("structure-experts", "no expert is left", key=key, hint="Keep at least one.")
    _refuse_uneven(layout, kept, key)
    work = view.scratch()
    steps = [*_renumber(layout, kept, work), *_rows(layout, kept), *_count(layout, len(kept))]
    yield preserve(view, layout.model, steps, prove=prove)


def _check(given: Sequence[int], count: int, key: str) -> None:
    wrong = next((n for n in given if not 0 <= n < count), None)
    if wrong is not None or len(set(given)) < len(given):
        message = (
            f"there is no expert {wrong} of {count}" if wrong is not None else f"an expert comes twice in {list(given)}"
        )
        raise Refusal("structure-experts", message, key=key, hint=f"Name each once, of 0 to {count - 1}.")


def _refuse_uneven(layout: ExpertNames, kept: Sequence[int], key: str) -> None:
    """Refuse what leaves groups of experts of different sizes, or too small. `kept`: for each new expert the old one
    whose group it is in."""
    groups = layout.model.place.config.get(GROUPS)
    if isinstance(groups, int) and groups > 0:
        each = layout.count // groups
        left = [sum(1 for n in kept if n // each == g) for g in range(groups)]
        if len(set(left)) > 1 or (groups > 1 and list(kept) != sorted(kept)):
            raise Refusal("structure-experts", f"{GROUPS} {groups}: groups of experts would differ, {left}", key=key,
                          hint="Leave as many in each group, in their order.")  # fmt: skip
        if left[0] < SCORED:
            message = f"{GROUPS} {groups}: groups are chosen by their {SCORED} best experts, and would have {left[0]}"
            raise Refusal("structure-experts", message, key=key, hint=f"Leave at least {SCORED} in each group.")


def _renumber(layout: ExpertNames, kept: Sequence[int], work: str) -> Iterator[Substep]:
    """The steps that leave experts under new numbers."""
    if layout.stacked:
        return
    alias = layout.model.alias
    every = layout.expert(r"(?P<e>\d+)", "(?P<tail>.+)")
    yield Substep("move", {"from": to(alias, every), "to": to(work, layout.named(r"\g<e>", r"\g<tail>"))})
    for new, old in enumerate(kept):
        source = to(work, layout.expert(str(old), "(?P<tail>.+)"))
        yield Substep("copy", {"from": source, "to": to(alias, layout.named(str(new), r"\g<tail>"))})


def _rows(layout: ExpertNames, kept: Sequence[int]) -> Iterator[Substep]:
    """The steps that keep the rows of routers, and of tensors that hold all experts."""
    for part in layout.model.parts:
        if (axis := part.axis_with({NUMBER})) is not None:
            target = to(layout.model.alias, captured(part.starred))
            yield Substep("take_", {"target": target, "dim": axis, "indices": list(kept)})


def _count(layout: ExpertNames, count: int) -> Iterator[Substep]:
    """The step that sets their number in the config, and how many a token takes if there are fewer to choose from."""
    config = layout.model.place.config
    patch = set_dims(layout.model, {NUMBER: count})
    chosen, groups, taken = (config.get(key) for key in (layout.own.chosen, GROUPS, TAKEN_GROUPS))
    most = count // groups * taken if isinstance(groups, int) and groups > 0 and isinstance(taken, int) else count
    if isinstance(chosen, int) and chosen > most:
        own = patch[layout.model.place.part] if layout.model.place.part else patch
        assert isinstance(own, dict)
        patch = layout.model.place.patch({**own, layout.own.chosen: most})
    yield from layout.model.configure(patch)


# --- Means ------------------------------------------------------------------------------------------------------------


def merge_experts(view: View, which: ModelAsked, groups: Sequence[Sequence[int]]) -> Iterator[Edit]:
    """What the op `expert_merge` does."""
    layout = ExpertNames(describe(view, which))
    every = [n for group in groups for n in group]
    _check(every, layout.count, "groups")
    if len(every) < layout.count:
        missing = next(n for n in range(layout.count) if n not in every)
        raise Refusal("structure-experts", f"expert {missing} is in no group", key="groups",
                      hint="Name it too, alone or with others; `expert_prune` drops experts.")  # fmt: skip
    _refuse_uneven(layout, [min(group) for group in groups], "groups")
    work = view.scratch()
    steps = [*_means(layout, groups, work), *_mean_rows(layout, groups)]
    yield Expand((*steps, *_count(layout, len(groups))))


def _means(layout: ExpertNames, groups: Sequence[Sequence[int]], work: str) -> Iterator[Substep]:
    """The steps that make an expert of each group, where each has names of its own."""
    if layout.stacked:
        return
    alias = layout.model.alias
    every = layout.expert(r"(?P<e>\d+)", "(?P<tail>.+)")
    yield Substep("move", {"from": to(alias, every), "to": to(work, layout.named(r"\g<e>", r"\g<tail>"))})
    for new, group in enumerate(groups):
        first = layout.expert(str(group[0]), "(?P<tail>.+)")
        target = to(alias, layout.named(str(new), r"\g<tail>"))
        if len(group) == 1:
            yield Substep("copy", {"from": to(work, first), "to": target})
            continue
        others = {f"e{n}": to(work, layout.named(str(n), r"\g<tail>")) for n in group[1:]}
        total = " + ".join(f"e{n}" for n in group)
        yield Substep("compute", {"from": {f"e{group[0]}": to(work, first), **others},
                                  "expr": f"({total}) / {len(group)}", "to": target})  # fmt: skip


def _mean_rows(layout: ExpertNames, groups: Sequence[Sequence[int]]) -> Iterator[Substep]:
    """The steps that give each of them the mean of the rows of routers, and of tensors that hold all experts."""
    for part in layout.model.parts:
        if (axis := part.axis_with({NUMBER})) is not None:
            at = f"{':, ' * axis}"
            rows = [f"({' + '.join(f'w[{at}{n}:{n + 1}]' for n in group)}) / {len(group)}" for group in groups]
            source = {"w": to(layout.model.alias, captured(part.starred))}
            yield Substep("compute", {"from": source, "expr": f"concat([{', '.join(rows)}], axis={axis})",
                                      "to": to(layout.model.alias, r"\g<0>")})  # fmt: skip


# --- Names ------------------------------------------------------------------------------------------------------------


def stack_experts(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `experts` does for `names: stacked`."""
    layout = ExpertNames(describe(view, which))
    model, own = layout.model, layout.own
    _refuse_transposed(layout)
    if layout.stacked:
        raise Refusal("structure-experts", f"the experts of '{model.alias}' are in one tensor already", key="names",
                      hint="Leave the step out.")  # fmt: skip
    work = view.scratch()
    head, pair = layout.head, (own.parts["gate_proj"], own.parts["up_proj"])
    steps = []
    for at, name in enumerate(pair):
        source = to(model.alias, layout.expert(r"(?P<e>\d+)", rf"{name}\.weight"))
        steps.append(Substep("stack", {"from": source, "to": to(work, rf"{head}\g<i>.{at}"), "over": "e"}))
    halves = {"alias": work, "name": rf"{re.escape(head)}(?P<i>\d+)\.(?P<half>[01])"}
    joined = to(model.alias, rf"{head}\g<i>.{own.stacked}.gate_up_proj")
    down = to(model.alias, layout.expert(r"(?P<e>\d+)", rf"{own.parts['down_proj']}\.weight"))
    steps += [
        Substep("concat", {"from": halves, "to": joined, "over": "half", "dim": 1}),
        Substep("stack", {"from": down, "to": to(model.alias, rf"{head}\g<i>.{own.stacked}.down_proj"), "over": "e"}),
        Substep("delete", {"target": to(model.alias, layout.expert(r"\d+", ".+"))}),
        *_route(layout, own.block, _block(own)),
    ]
    yield preserve(view, model, steps, prove=prove)


def separate_experts(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `experts` does for `names: separate`."""
    layout = ExpertNames(describe(view, which))
    model, own = layout.model, layout.own
    _refuse_transposed(layout)
    if not layout.stacked:
        message = f"the experts of '{model.alias}' have names of their own already"
        raise Refusal("structure-experts", message, key="names", hint="Leave the step out.")
    lead = rf"{re.escape(layout.head)}(?P<i>\d+)\.{re.escape(own.stacked)}"
    both = next(part for part in model.parts if part.starred.endswith(f"{own.stacked}.gate_up_proj"))
    size = sections(both.axes[1], model.sizes)[0].counts[-1]
    pieces = {"gate_proj": f"[:, :{size}, :]", "up_proj": f"[:, {size}:, :]"}
    steps = []
    for name, index in pieces.items():
        source = {"alias": model.alias, "name": rf"{lead}\.gate_up_proj", "slice": index}
        target = to(model.alias, layout.named("${e}", f"{own.parts[name]}.weight"))
        steps.append(Substep("unstack", {"from": source, "to": target, "over": "e"}))
    target = to(model.alias, layout.named("${e}", f"{own.parts['down_proj']}.weight"))
    steps += [
        Substep("unstack", {"from": to(model.alias, rf"{lead}\.down_proj"), "to": target, "over": "e"}),
        Substep("delete", {"target": to(model.alias, rf"{lead}\.(?:gate_up|down)_proj")}),
        *_route(layout, _block(own), own.block),
    ]
    yield preserve(view, model, steps, prove=prove)


def _refuse_transposed(layout: ExpertNames) -> None:
    layout.model.require("expert.*.gate")
    if layout.own.transposed:
        raise Refusal("structure-experts", f"experts of a {layout.model.place.kind} have no names of their own: its "
                      "class holds all of a layer in two tensors", key="names", hint="Leave the step out.")  # fmt: skip


def _block(own: Experts) -> str:
    """Where the router is beside tensors that hold all experts."""
    return own.stacked.rpartition(".")[0]


def _route(layout: ExpertNames, old: str, new: str) -> Iterator[Substep]:
    """The step that renames routers, if those of the other names are called otherwise."""
    if old != new:
        source = rf"({re.escape(layout.head)}\d+)\.{re.escape(old)}\.({re.escape(layout.own.router)})"
        alias = layout.model.alias
        yield Substep("move", {"from": to(alias, source), "to": to(alias, rf"\g<1>.{new}.\g<2>")})
