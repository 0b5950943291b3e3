"""Heads, groups of heads and neurons, taken out of every tensor that has entries for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.names import expand_braces
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.axes import entries, sections
from brainsurgery_jax.structure.described import Described, TensorPart, captured, describe, names_in, to
from brainsurgery_jax.structure.experts import NEURONS, note_rows
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.structure.proof import Change, preserve
from brainsurgery_jax.wording import few

Units = Mapping[int | None, Sequence[int]] | int | float
"""What is taken out: numbers, for all layers (None) or for each; or how many, or which share, of the smallest."""


class AskedUnits(NamedTuple):
    """What a step takes out, one of the three; whether the config is to stay as it is; and whether units that are not
    named are chosen at random, and not by their norms."""

    heads: object
    kv_groups: object
    neurons: object
    keeps_config: bool
    random: bool = False


class Cut(NamedTuple):
    """What stays of some dims in a layer (None: in all)."""

    layer: int | None
    kept: Mapping[str, Sequence[int]]


class Pruning(NamedTuple):
    """The steps that score units and those that take some out, what is left of each dim, and the steps that make a copy
    of the model do without them: nothing of it reads what they give."""

    scores: Sequence[Substep]
    steps: Sequence[Substep]
    sizes: Mapping[str, int]
    silence: Change


def prune(view: View, which: ModelAsked, asked: AskedUnits, *, prove: bool) -> Iterator[Edit]:
    """What the op `prune` does."""
    given = [key for key in ("heads", "kv_groups", "neurons") if getattr(asked, key) is not None]
    if len(given) != 1:
        message = f"give one of heads, kv_groups and neurons, got {' and '.join(given) or 'none'}"
        raise Refusal("structure-prune", message, key=given[-1] if given else "",
                      hint="Take each out in a step of its own.")  # fmt: skip
    (key,) = given
    model = describe(view, which)
    _refuse_unknown(model, key)
    units: Units = getattr(asked, key)
    if isinstance(units, int | float):
        made = _by_score(model, key, units, view.scratch(), random=asked.random)
    else:
        made = _by_number(model, key, units)
    config = () if asked.keeps_config else tuple(_configure(view, model, made.sizes))
    if prove and not config:
        message = "no config says what is left, so that nothing can compute the result"
        raise Refusal("structure-prune", message, key="prove", hint="Leave `prove` out.")
    if prove:
        _refuse_shared_norm(model, key)
    if NEURONS in made.sizes and model.kind is not None and model.kind.experts is not None:
        note_rows(view, model, made.sizes[NEURONS], NEURONS, key)
    scores = list(made.scores)
    steps = [
        *([] if prove else scores),
        *made.steps,
        *config,
    ]  # for a proof scores come first, as both models need them
    yield preserve(view, model, steps, prove=prove, before=lambda copy: [*scores, *made.silence(copy)])


def _refuse_unknown(model: Described, key: str) -> None:
    stacks = tuple(model.layered(stack) for stack in model.stacks or ("",))
    inside = [starred for starred in model.unknown if starred.startswith(stacks)]
    if model.place.family.is_given:  # what it does not name stays, unless an axis is as long as one that changes
        dims = set(_couple(model, key))
        parts = [(aval.shape, part.axes) for part in model.parts for aval in part.kin.first]
        sizes = {n for shape, axes in parts for n, text in zip(shape, axes, strict=True) if names_in(text) & dims}
        inside = [starred for starred in inside if any(sizes & {*aval.shape} for aval in model.kin[starred].first)]
    if inside:
        message = f"{few([repr(s) for s in inside])} may have entries for heads or neurons, and is not known"
        raise Refusal("structure-model", message, key="alias",
                      hint="Give its shape in `family`, with `_` for an axis that stays." if model.place.family.is_given
                      else "Move it to another alias before this step, change it there, and move it back.")  # fmt: skip


def _refuse_shared_norm(model: Described, key: str) -> None:
    """Refuse a proof for a model that normalizes queries or keys of all heads together: those that stay change too."""
    dims = set(_couple(model, key))
    for name in model.names(f"{model.roles[role]}.weight" for role in ("q_norm", "k_norm") if role in model.roles):
        part = next((part for part in model.parts if part.starred == name), None)
        if part is not None and part.axis_with(dims) is not None:
            message = f"a {model.place.kind} normalizes over all heads, by '{name}', so those that stay change too"
            raise Refusal("structure-prune", message, key="prove", hint="Leave `prove` out.")


def _dim(model: Described, key: str) -> str:
    """The dim whose units are taken out. Raises Refusal."""
    family = model.place.family
    query, group = family.heads
    dims = {"heads": (query,), "kv_groups": (group,), "neurons": family.neurons}[key]
    found = next((dim for dim in dims if any(part.axis_with({dim}) is not None for part in model.parts)), None)
    if found is None:
        raise Refusal("structure-prune", f"no tensor of '{model.alias}' has entries for {key}", key=key,
                      hint="Name what there is: heads, kv_groups or neurons.")  # fmt: skip
    return found


def _couple(model: Described, key: str) -> tuple[str, ...]:
    """The dims that change with it: the heads of a group with the group."""
    dim = _dim(model, key)
    query, group = model.place.family.heads
    if key == "neurons" or model.sizes.values.get(group) is None:
        return (dim,)
    return (query,) if query == group else (query, group)


# --- By number --------------------------------------------------------------------------------------------------------


def _by_number(model: Described, key: str, units: Mapping[int | None, Sequence[int]]) -> Pruning:
    """What takes out units by their numbers."""
    dim, count = _dim(model, key), model.size(_dim(model, key))
    cuts = []
    for layer, dropped in units.items():
        wrong = next((n for n in dropped if not 0 <= n < count), None)
        if wrong is not None:
            raise Refusal("structure-prune", f"there is no number {wrong} of {count} {key}", key=key,
                          hint=f"Valid are 0 to {count - 1}.")  # fmt: skip
        kept = [n for n in range(count) if n not in set(dropped)]
        cuts.append(Cut(layer, _with_groups(model, key, dim, kept)))
    sizes = [{d: len(kept) for d, kept in cut.kept.items()} for cut in cuts]
    _refuse_uneven(model, key, cuts, sizes)
    steps = [step for cut in cuts for step in _take(model, cut)]
    return Pruning([], steps, sizes[0], lambda copy: [step for cut in cuts for step in _silence(model, copy, cut)])


def _refuse_uneven(model: Described, key: str, cuts: Sequence[Cut], sizes: Sequence[Mapping[str, int]]) -> None:
    layers = {cut.layer for cut in cuts}
    first = next(iter(model.stacks.values()))
    missing = None not in layers and layers != set(range(model.size(first)))
    if missing or any(size != sizes[0] for size in sizes):
        raise Refusal("structure-prune", "layers would not all have as many left, which no config can say", key=key,
                      hint="Name as many for each layer, and every layer; or one list for all.")  # fmt: skip


def _with_groups(model: Described, key: str, dim: str, kept: Sequence[int]) -> Mapping[str, Sequence[int]]:
    """What stays of heads and of the groups that share keys and values. Raises Refusal if groups would differ."""
    if not kept:
        raise Refusal("structure-prune", f"no {key} would be left", key=key, hint="Leave at least one.")
    query, group = model.place.family.heads
    if _couple(model, key) != (query, group):
        return {dim: kept}
    each = model.size(query) // model.size(group)
    if key == "kv_groups":
        return {group: kept, query: [g * each + n for g in kept for n in range(each)]}
    left = {g: sum(1 for n in kept if n // each == g) for g in range(model.size(group))}
    groups = [g for g, n in left.items() if n]
    if len({left[g] for g in groups}) > 1:
        shown = ", ".join(f"{n} of group {g}" for g, n in left.items())
        message = f"heads that share keys and values come in groups of {each}, which would differ: {shown}"
        raise Refusal("structure-prune", message, key=key,
                      hint="Take as many out of each group, or whole groups: `kv_groups`.")  # fmt: skip
    return {query: kept, group: groups}


def _take(model: Described, cut: Cut) -> Iterator[Substep]:
    """The steps that keep these entries of every axis that has them."""
    for part in model.parts:
        for axis, text in enumerate(part.axes):
            if names_in(text) & set(cut.kept):
                indices = entries(text, model.sizes, cut.kept)
                target = to(model.alias, _in_layer(model, part, cut.layer))
                yield Substep("take_", {"target": target, "dim": axis, "indices": indices})


def _writes(model: Described, part: TensorPart) -> bool:
    """Whether a part adds to the residual stream."""
    names = [name for text in model.place.family.writers for name in expand_braces(text)]
    return part.name.endswith(tuple(f".{name}" for name in names))


def _silence(model: Described, copy: str, cut: Cut) -> Iterator[Substep]:
    """The steps by which nothing of a copy reads the units that go: they become entries of a padding of zeros."""
    for part in model.parts:
        for axis, text in enumerate(part.axes):
            if _writes(model, part) and names_in(text) & set(cut.kept):
                kept = set(entries(text, model.sizes, cut.kept))
                shape = next(iter(part.kin.first)).shape
                target = to(copy, _in_layer(model, part, cut.layer))
                padded = [n + 1 if at == axis else -1 for at, n in enumerate(shape)]
                indices = [n if n in kept else shape[axis] for n in range(shape[axis])]
                yield Substep("pad_", {"target": target, "shape": padded})
                yield Substep("take_", {"target": target, "dim": axis, "indices": indices})


def _in_layer(model: Described, part: TensorPart, layer: int | None) -> str:
    """A pattern for the tensors of a part in one layer, or in all."""
    for stack in model.stacks:
        head = model.layered(stack)
        if layer is not None and part.starred.startswith(head + "*."):
            rest = part.starred.removeprefix(head + "*.")
            return rf"{re.escape(head)}{layer}\.{captured(rest)}"
    return captured(part.starred)


# --- By norm ----------------------------------------------------------------------------------------------------------


class Carrier(NamedTuple):
    """Tensors with entries for units: along which axis, and how often all units come one after another there."""

    part: TensorPart
    axis: int
    outer: int


def _by_score(model: Described, key: str, amount: float, work: str, *, random: bool) -> Pruning:
    """What takes out the units of least norm in each layer, or some at random."""
    dims, count = _couple(model, key), model.size(_dim(model, key))
    if key == "heads" and len(dims) > 1 and model.size(dims[0]) != model.size(dims[1]):
        raise Refusal("structure-prune", "heads that share keys and values can only be chosen in whole groups", key=key,
                      hint="Write `kv_groups` instead, or the numbers of the heads.")  # fmt: skip
    dropped = amount if isinstance(amount, int) else int(amount * count)
    if not 0 < dropped < count:
        raise Refusal("structure-prune", f"{amount} of {count} {key} are {dropped} to take out", key=key,
                      hint=f"Take out 1 to {count - 1}, or a share such as 0.25.")  # fmt: skip
    carriers = [carrier for part in model.parts for carrier in _carriers(model, part, dims)]
    if shared := next((c.part for c in carriers if c.part.starred in model.first), None):
        name = next(iter(shared.kin.first.values()))
        raise Refusal("structure-prune", f"all layers share '{name}', so none can choose {key} by itself", key=key,
                      hint="Give the numbers of those that go, for all layers.")  # fmt: skip
    keep = count - dropped
    sizes = {d: model.size(d) // count * keep for d in dims}
    scores = [*_score(model, carriers, count, work), *(_draw(work) if random else ())]
    return Pruning(scores, [*_keep(model, carriers, keep, work)], sizes,
                   lambda copy: _mask(model, copy, carriers, (count, keep), work))  # fmt: skip


def _draw(work: str) -> Iterator[Substep]:
    """The step that puts random numbers in the place of all scores."""
    yield Substep("fill_", {"target": to(work, r".*\.scores"), "mode": "rand"})


def _carriers(model: Described, part: TensorPart, dims: Sequence[str]) -> Iterator[Carrier]:
    """The axes of a part that have units. Raises Refusal for one that holds tensors of several sizes."""
    for axis, text in enumerate(part.axes):
        every = sections(text, model.sizes) if names_in(text) & set(dims) else ()
        if any(set(section.factors) & set(dims) for section in every):
            if len(every) > 1:
                name = next(iter(part.kin.first.values()))
                message = f"'{name}' holds tensors of several sizes, so that its units are not known"
                raise Refusal("structure-prune", message, key="alias",
                              hint="Put `- unfuse: {}` before this step, and `- fuse: {}` behind it.")  # fmt: skip
            section = next(iter(every))
            at = next(at for at, factor in enumerate(section.factors) if factor in dims)
            yield Carrier(part, axis, prod(section.counts[:at]))


def _score(model: Described, carriers: Sequence[Carrier], count: int, work: str) -> Iterator[Substep]:
    """The steps that sum the squares of all that belongs to a unit: one for each kind of tensors, added up."""
    seen: set[str] = set()
    for part, axis, outer in carriers:
        aval = next(iter(part.kin.first))
        inner = aval.shape[axis] // (outer * count)
        shape = (prod(aval.shape[:axis]) * outer, count, inner * prod(aval.shape[axis + 1 :]))
        squares = f"sum(float32(reshape(w, {shape})) ** 2, axis=(0, 2))"
        name = _scores(model, part)
        tensors: dict[str, object] = {"w": {"alias": model.alias, "name": captured(part.starred)}}
        if name in seen:
            tensors["s"] = to(work, name)
        made = f"s + {squares}" if name in seen else squares
        seen.add(name)
        yield Substep("compute", {"from": tensors, "expr": made, "to": to(work, name), "dtype": "float32"})


def _scores(model: Described, part: TensorPart, kind: str = "scores") -> str:
    """The name of the scores of a layer, or of an expert in it, as a template."""
    stack = next(s for s in model.stacks if part.starred.startswith(model.layered(s)))
    return ".".join([stack, *(rf"\g<{at}>" for at in range(1, part.starred.count("*") + 1)), kind])


def _keep(model: Described, carriers: Sequence[Carrier], keep: int, work: str) -> Iterator[Substep]:
    """The steps that keep the units with the largest scores."""
    for part, axis, outer in carriers:
        yield Substep("keep_largest_", {
            "target": {"alias": model.alias, "name": captured(part.starred)}, "scores": to(work, _scores(model, part)),
            "keep": keep, "dim": axis, "outer": outer,
        })  # fmt: skip


def _mask(
    model: Described, copy: str, carriers: Sequence[Carrier], counts: tuple[int, int], work: str
) -> Iterator[Substep]:
    """The steps by which nothing of a copy reads units of lower scores: `keep_largest_` chooses rows of an identity."""
    count, keep = counts
    scores = {"s": to(work, r"(.*)\.scores")}
    yield Substep("compute", {"from": scores, "expr": f"eye({count}) + 0 * s", "to": to(work, r"\1.mask")})
    yield Substep("keep_largest_", {"target": to(work, r"(.*)\.mask"), "scores": to(work, r"\1.scores"), "keep": keep})
    for part, axis, outer in (each for each in carriers if _writes(model, each.part)):
        shape = next(iter(part.kin.first)).shape
        cut = (prod(shape[:axis]), outer, count, shape[axis] // (outer * count), prod(shape[axis + 1 :]))
        mask = "reshape(sum(m, axis=0), (1, 1, -1, 1, 1))"
        source = {"w": to(copy, captured(part.starred)), "m": to(work, _scores(model, part, "mask"))}
        yield Substep("compute", {"from": source, "expr": f"reshape(reshape(w, {cut}) * {mask}, {shape})"})


def _configure(view: View, model: Described, sizes: Mapping[str, int]) -> Iterator[Substep]:
    """The step that sets sizes in the config, or a note that no config can say them."""
    patch = set_dims(model, sizes)
    after = model.with_config(patch)
    wrong = [d for d in model.dims if d not in sizes and after.values[d] != model.sizes.values[d]]
    if model.place.family.is_given and model.place.whole:
        wrong += [d for d, size in sizes.items() if after.values[d] != size]
    kind = model.kind
    if kind is not None and kind.fixed_heads and set(sizes) & set(model.place.family.heads):
        wrong = [model.place.family.heads[0]]
    if wrong:
        key = " or ".join(model.place.family.dims[wrong[0]])
        message = f"the config has no key for {key}, which would change with the others: it stays as it is"
        hint = "Load the tensors into a model that was pruned in the same way; `config: keep` says that this is meant."
        view.note("structure-prune", message, "", hint)
    else:
        yield from model.configure(patch)
