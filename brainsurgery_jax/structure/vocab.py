"""Words: more or fewer rows of all tables of words, others in their place, or those of another tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, TakeTokenizer, View
from brainsurgery_jax.structure.described import Described, TensorPart, captured, describe, filled, names_in, to
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.structure.positions import follow_words
from brainsurgery_jax.structure.proof import preserve
from brainsurgery_jax.structure.special_words import KeptWords, renumber_generation
from brainsurgery_jax.vocabulary import find_words, read_vocabulary
from brainsurgery_jax.wording import few

WORDS = "V"
MEAN, ZERO = "mean", "zero"


class AskedWords(NamedTuple):
    """The words of a step: how many, or a multiple, or which of the old ones, or the alias whose tokenizer has them;
    and what new rows hold."""

    size: int | None
    multiple_of: int | None
    order: Sequence[int] | None
    tokenizer: str | None
    rows: str


class NewWords(NamedTuple):
    """How many words there are afterwards, the steps that make it so, and which of the old ones stay."""

    size: int
    steps: Sequence[Substep]
    kept: KeptWords


def change_words(view: View, which: ModelAsked, asked: AskedWords, *, prove: bool) -> Iterator[Edit]:
    """What the op `vocab` does."""
    model = describe(view, which)
    tables = [each for each in model.parts if each.axis_with({WORDS}) is not None]
    _refuse_unknown(model, model.size(WORDS))
    if asked.tokenizer is not None:
        made = _align(view, model, tables, asked)
    elif asked.order is not None:
        made = _order(model, tables, asked.order)
    else:
        made = _resize_all(view, model, tables, asked)
    patch = set_dims(model, {WORDS: made.size})
    moved: Sequence[Substep] = ()
    if asked.tokenizer is not None or asked.order is not None:
        more, moved = follow_words(view, model, made.kept, asked.tokenizer)
        patch = patch_mapping(patch, more)
        yield from renumber_generation(view, model, made.kept, asked.tokenizer)
    if asked.tokenizer is not None:
        yield TakeTokenizer(model.alias, asked.tokenizer)
    yield preserve(view, model, [*made.steps, *moved, *model.configure(patch)], prove=prove,
                   before=lambda copy: _choose(model, tables, copy, made.kept.old),
                   after=lambda copy: _choose(model, tables, copy, made.kept.new))  # fmt: skip


def _refuse_unknown(model: Described, count: int) -> None:
    sized = [s for s in model.unknown if any(count in aval.shape for aval in model.kin[s].first)]
    if sized:
        message = f"{few([repr(s) for s in sized])} may have a row for each of {count} words, and is not known"
        raise Refusal("structure-model", message, key="alias",
                      hint="Move it to another alias before this step, change it there, and move it back.")  # fmt: skip


def axis_of_words(part: TensorPart) -> int:
    """The axis of a table along which its words lie."""
    axis = part.axis_with({WORDS})
    assert axis is not None and names_in(part.axes[axis]) == {WORDS}
    return axis


def _take(alias: str, part: TensorPart, rows: Sequence[int]) -> Substep:
    target = to(alias, captured(part.starred))
    return Substep("take_", {"target": target, "indices": list(rows), "dim": axis_of_words(part)})


def _choose(model: Described, tables: Sequence[TensorPart], alias: str, rows: Sequence[int]) -> Iterator[Substep]:
    """The steps that leave a copy of the model these words alone, for a proof."""
    yield from (_take(alias, each, rows) for each in tables)
    if len(rows) != model.size(WORDS):
        yield Substep("config", {"patch": set_dims(model, {WORDS: len(rows)}), "alias": alias})


# --- In another order -------------------------------------------------------------------------------------------------


def _order(model: Described, tables: Sequence[TensorPart], order: Sequence[int]) -> NewWords:
    count = model.size(WORDS)
    wrong = next((n for n in order if not 0 <= n < count), None)
    if wrong is not None:
        raise Refusal("structure-words", f"there is no word {wrong}: the model has {count}", key="order",
                      hint=f"Valid are 0 to {count - 1}.")  # fmt: skip
    return NewWords(len(order), [_take(model.alias, each, order) for each in tables],
                    KeptWords(order, range(len(order))))  # fmt: skip


# --- More or fewer ----------------------------------------------------------------------------------------------------


def _resize_all(view: View, model: Described, tables: Sequence[TensorPart], asked: AskedWords) -> NewWords:
    if asked.size is None and asked.multiple_of is None:
        raise Refusal("structure-words", "give one of size, multiple_of, order and tokenizer",
                      hint="Write `vocab: {multiple_of: 64}`, for instance.")  # fmt: skip
    count = model.size(WORDS)
    size = _round(count if asked.size is None else asked.size, asked)
    work = view.scratch()
    same = range(min(size, count))
    return NewWords(size, [step for each in tables for step in _resize(view, model, each, work, asked.rows, size)],
                    KeptWords(same, same))  # fmt: skip


def _round(size: int, asked: AskedWords) -> int:
    return -(-size // (asked.multiple_of or 1)) * (asked.multiple_of or 1)


def _resize(view: View, model: Described, part: TensorPart, work: str, rows: str, size: int) -> Iterator[Substep]:
    """The steps that give a table so many rows."""
    axis, (first, *_) = axis_of_words(part), part.kin.first
    count = first.shape[axis]
    shape = [size if at == axis else -1 for at in range(len(first.shape))]
    if size < count:
        cut = ", ".join(f":{size}" if at == axis else ":" for at in range(len(first.shape)))
        yield Substep("move", {"from": model.ref(part.starred), "to": to(work, r"\g<0>")})
        kept = {"alias": work, "name": captured(part.starred), "slice": f"[{cut}]"}
        yield Substep("copy", {"from": kept, "to": to(model.alias, filled(part.starred))})
    elif rows == ZERO and size > count:
        yield Substep("pad_", {"target": model.ref(part.starred), "shape": shape})
    elif rows == MEAN and size > count:
        more = f"repeat(mean(w, axis={axis}, keepdims=True), {size - count}, axis={axis})"
        yield Substep("compute", {"from": {"w": model.ref(part.starred)}, "expr": f"concat([w, {more}], axis={axis})",
                                  "to": to(model.alias, r"\g<0>")})  # fmt: skip
    elif size > count:
        (name,) = part.kin.numbers.values()
        if (have := view.fetch(rows, name, "rows").aval.shape[axis]) != size - count:
            why = f"'{name}' of '{rows}' has {have} rows, and {size - count} are put behind the {count} that there are"
            hint = "Give tables of the new rows alone; a step `take_` before this cuts larger ones down."
            raise Refusal("structure-words", why, key="rows", hint=hint)
        yield from _join(model, part, work, rows)


def _join(model: Described, part: TensorPart, work: str, rows: str) -> Iterator[Substep]:
    """The steps that put the rows of another alias behind those of a table."""
    yield Substep("move", {"from": model.ref(part.starred), "to": to(work, r"\g<0>")})
    (name,) = part.kin.numbers.values()
    joined = [{"alias": of, "name": captured(name)} for of in (work, rows)]
    yield Substep("concat", {"from": joined, "to": {"alias": model.alias, "name": name}, "dim": axis_of_words(part)})


# --- Those of another tokenizer ---------------------------------------------------------------------------------------


def _align(view: View, model: Described, tables: Sequence[TensorPart], asked: AskedWords) -> NewWords:
    """The words of another tokenizer: those that the model has keep their rows, under their new numbers."""
    source, count = asked.tokenizer, model.size(WORDS)
    assert source is not None
    if asked.order is not None:
        raise Refusal("structure-words", "give either order or tokenizer", key="order",
                      hint="Put `order` into a step of its own, before this one.")  # fmt: skip
    new = read_vocabulary(lambda name: view.side_file(source, name, "tokenizer"), source, "tokenizer")
    old = read_vocabulary(lambda name: view.side_file(model.alias, name, "alias"), model.alias, "alias")
    places = find_words(new, old, count)
    kept = KeptWords([n for n in places if n is not None], [at for at, n in enumerate(places) if n is not None])
    size = _round(len(places) if asked.size is None else asked.size, asked)
    if not kept.old:
        message = f"'{model.alias}' and '{source}' have no word in common"
        raise Refusal("structure-words", message, key="tokenizer", hint="Name the alias of another tokenizer.")
    if size < len(places):
        message = f"{new.file} of '{source}' has {len(places)} words, more than {size}"
        raise Refusal("structure-words", message, key="size", hint=f"Give {len(places)} or more.")
    if len(kept.old) < len(places):
        view.note("structure-words", f"{len(places) - len(kept.old)} of {len(places)} words are new", "tokenizer",
                  f"Their rows hold what `rows` says ({asked.rows}); train them, or give better ones.")  # fmt: skip
    numbers = [*places, *[None] * (size - len(places))]
    work = view.scratch()
    return NewWords(size, [s for each in tables for s in _gather(view, model, each, work, (asked.rows, numbers))], kept)


def _gather(
    view: View, model: Described, part: TensorPart, work: str, wanted: tuple[str, Sequence[int | None]]
) -> Iterator[Substep]:
    """The steps that give a table a row for each word: an old one, or one that is put behind the old ones for all that
    are new; or that of the new number in another alias."""
    (rows, numbers), axis, (first, *_) = wanted, axis_of_words(part), part.kin.first
    count = first.shape[axis]
    if rows == ZERO:
        shape = [count + 1 if at == axis else -1 for at in range(len(first.shape))]
        yield Substep("pad_", {"target": model.ref(part.starred), "shape": shape})
    elif rows == MEAN:
        expr = f"concat([w, mean(w, axis={axis}, keepdims=True)], axis={axis})"
        yield Substep("compute", {"from": {"w": model.ref(part.starred)}, "expr": expr,
                                  "to": to(model.alias, r"\g<0>")})  # fmt: skip
    else:
        (name,) = part.kin.numbers.values()
        have = view.fetch(rows, name, "rows").aval.shape[axis]
        if have < len(numbers):
            raise Refusal("structure-words", f"'{name}' of '{rows}' has {have} rows, and {len(numbers)} words need one",
                          key="rows", hint="Give tables with a row for every word of the tokenizer.")  # fmt: skip
        yield from _join(model, part, work, rows)
    alone = rows in (ZERO, MEAN)
    taken = [n if n is not None else count + (0 if alone else at) for at, n in enumerate(numbers)]
    yield _take(model.alias, part, taken)
