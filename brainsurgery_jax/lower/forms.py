"""The edits of ops with a form: matching, slices and destinations, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.assigning import choose_rows
from brainsurgery_jax.lower.casts import CastOperand, name_casts
from brainsurgery_jax.lower.state import pattern_of
from brainsurgery_jax.lower.trees import target_of
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.op import Builder, Form, Kernel, TensorOp, gather_groups
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import NO_MATCH, Bind, Drop, Edit, Plant, Results, Row
from brainsurgery_jax.select import Ref, spread

MISSING = (NO_MATCH, "tensor-missing")
"""Codes of the refusals that `if_missing: skip` accepts."""


def form_edits(op: TensorOp, step: Step, view: StepView, skipped: list[str]) -> Iterator[Edit]:
    """One edit per match of the form's pattern, in the order of `view.rename`; each sees the edits before it."""
    form, params = op.form, step.params
    values: tuple[str, tuple[str, ...]] | None = params.get(form.spread)
    drawn = {f.key: f.param for f in op.fields() if f.role and f.role.takes_tensor and _is_ref(params.get(f.param))}
    keys = (*[key for key in form.refs if params.get(key) is not None], *drawn)
    refs: dict[str, Ref] = {key: params[drawn.get(key, key)] for key in keys}
    given = {f.param: params.get(f.param, f.default) for f in op.fields() if f.param not in form.own_params}
    make = _maker(op.maker, given, view, tuple(drawn.values()))
    slots = _slots(form, refs)
    reads = [(keys.index(key), refs[key], key) for key in (*form.reads, *drawn) if key in refs]
    is_sliced = any([ref.index is not None for _, ref, _ in reads])
    at, write = keys.index(form.writes[0]), refs[form.writes[0]]
    like = refs[form.match_key].alias if form.reads else None  # the alias of the tensor that a result is like
    rows = _form_rows(view, form, refs, drawn) if values is None else _spread_rows(view, form, refs, *values)
    for name, others in rows:
        names = (name, *others)
        try:
            whole = _fetch(view, slots, names)
        except Refusal as bad:
            if not (step.lenient and bad.code in MISSING):
                raise
            skipped.append(name)
            continue
        try:
            operands = [view.slice(whole[i], ref, key) if is_sliced else whole[i] for i, ref, key in reads]
            made = make(names[at] if len(form.writes) == 1 else name, tuple(operands))
            if form.dest == "existing" and not isinstance(made, Results):
                made = view.update(whole[at], write, made, keys[at])
        except Refusal as bad:
            read = (CastOperand(ref, key == form.match_key, names[i], whole[i]) for i, ref, key in reads)
            bad.hint = name_casts(bad.hint, view, read, matches=len(rows))
            raise _about(op, bad, refs, dict(zip(keys, names, strict=True))) from bad
        if isinstance(made, Results):
            yield from _bind_results(
                form, made, {key: (refs[key].alias, n) for key, n in zip(keys, names, strict=True)}
            )
        else:
            yield Bind(write.alias, names[at], made, form.dest, None if like is None else (like, name))
    if at > 0 and form.dest != "existing" and len(form.writes) == 1:
        yield from _plants(view, refs[form.match_key], form.writes[0], write, values)


def _fetch(view: StepView, slots: Sequence[tuple[str, str, int]], names: Sequence[str]) -> list[Any]:
    """The tensors of a match, one for each slot; None for one that is not read."""
    return [
        view.fetch(alias, name, key, count) if count else None
        for (key, alias, count), name in zip(slots, names, strict=True)
    ]


def _plants(
    view: StepView, source: Ref, key: str, write: Ref, values: tuple[str, tuple[str, ...]] | None
) -> Iterator[Edit]:
    """Edits that copy the leaves without a tensor that a pattern matches."""
    rows = view.other_rows(source, {key: write}) if values is None else _spread_others(view, source, write, *values)
    for other, (target,) in rows:
        yield Plant(source.alias, other, write.alias, target)


def _spread_rows(view: StepView, form: Form, refs: Mapping[str, Ref], over: str, values: Sequence[str]) -> list[Row]:
    """For every match, and every text that `over` is: the match's name, and the name of the result."""
    source, target = refs[form.match_key], refs[form.writes[0]]
    pattern, matches = view.captures(source, form.match_key)
    view.space(target.alias, form.writes[0])
    made = spread(pattern, matches, over, target.name, [values] * len(matches), "copies")
    return [(name, (new,)) for (name, _), names in zip(matches, made, strict=True) for new in names]


def _spread_others(view: StepView, source: Ref, target: Ref, over: str, values: Sequence[str]) -> Iterator[Row]:
    """The same for every leaf without a tensor."""
    for name, (matched, binding) in view.other_matches(source):
        made = spread(pattern_of(source.name), [(matched, binding)], over, target.name, [values], "copies")
        yield from ((name, (new,)) for filled in made[0] if (new := target_of(name, matched, filled)))


def _slots(form: Form, refs: Mapping[str, Ref]) -> list[tuple[str, str, int]]:
    """The references of a form: key, alias, and how many reads of the named tensor are counted (0: it is not read)."""
    # A name from a template is looked up, then fetched: two reads, as the plan language counts them.
    times = {key: form.counted if key == form.match_key else 2 for key in refs}
    read = lambda key: key in form.reads or key not in form.writes or form.dest == "existing"  # noqa: E731
    return [(key, ref.alias, times[key] * read(key)) for key, ref in refs.items()]


def _is_ref(value: object) -> bool:
    return isinstance(value, Ref)


def _form_rows(view: StepView, form: Form, refs: Mapping[str, Ref], drawn: Collection[str]) -> list[Row]:
    """The names under the keys of a form: for each match, or the literal ones where it reads nothing. `drawn`: the keys
    of numbers that are tensors."""
    if not form.reads:
        name, *others = (view.literal(refs[key], key) for key in form.refs)
        return [(name, tuple(others))]
    targets = {key: ref for key, ref in refs.items() if key != form.match_key}
    read, written = ([key for key in targets if key in keys] for keys in (form.reads, form.writes))
    rows = view.rename(refs[form.match_key], targets, read=read, written=written, before=drawn)
    return choose_rows(view, form, refs, rows) if form.fills else rows


def _bind_results(form: Form, made: Results, places: Mapping[str, tuple[str, str]]) -> Iterator[Edit]:
    """Edits that bind the results of a match. `places`: alias and name under each key of the form."""
    source, targets = places[form.match_key], [places[key] for key in form.writes]
    if len(set(targets)) < len(targets):
        keys = " and ".join(f"`{key}`" for key in form.writes)
        hint = f"Give {keys} different endings, such as {' and '.join(map(repr, form.endings))}."
        found = f"both {form.noun} of '{source[1]}' would be called '{targets[-1][1]}'"
        raise Refusal("names-collide", found, key=form.writes[-1], hint=hint)
    for (alias, name), expr in zip(targets, made.exprs, strict=True):
        yield Bind(alias, name, expr, made.dest or form.dest)
    if made.drops and source not in targets:
        yield Drop(*source)


def _maker(
    maker: Kernel | Builder, params: Mapping[str, object], view: StepView, drawn: Sequence[str] = ()
) -> Callable[[str, tuple[Expr, ...]], Any]:
    """A function of a name and operands that yields the result of a form. `drawn`: the numbers that are tensors, which
    are the last operands."""
    if isinstance(maker, Builder):
        keys = gather_groups(maker.fn, params)
        return lambda name, operands: maker.fn(view, name, *operands, **keys)
    if drawn:
        build = maker.with_tensors
        assert build is not None, f"'{maker.name}' takes no numbers from tensors"
        return lambda name, operands: build(
            view, *operands[: -len(drawn)], **{**params, **dict(zip(drawn, operands[-len(drawn) :], strict=True))}
        )
    recipe = view.graph.recipe(maker, params)
    if maker.caution is None:
        return lambda name, operands: view.graph.apply(recipe, operands)

    def make(name: str, operands: tuple[Expr, ...]) -> Expr:
        made = view.graph.apply(recipe, operands)
        view.caution(maker, operands, params)
        return made

    return make


def _about(op: TensorOp, bad: Refusal, refs: Mapping[str, Ref], names: Mapping[str, str]) -> Refusal:
    """A refusal with the names of its tensors, operands first; the calls of a builder name their own."""
    if isinstance(op.maker, Builder):
        return bad.about("")
    given = (key for key in dict.fromkeys((*op.form.reads, *op.form.writes)) if key in refs)
    about = ", ".join(f"{key} '{refs[key].alias}::{names[key]}'" for key in given)
    return bad.about(f" ({about})")
