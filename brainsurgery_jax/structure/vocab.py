"""Words: more or fewer rows of all tables of words, or others in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Expand, Substep, View
from brainsurgery_jax.structure.described import Described, TensorPart, captured, describe, filled, names_in, to
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.wording import few

WORDS = "V"
MEAN, ZERO = "mean", "zero"


class AskedWords(NamedTuple):
    """The words of a step: how many, or a multiple, or which of the old ones; and what new rows hold."""

    size: int | None
    multiple_of: int | None
    order: Sequence[int] | None
    rows: str


def change_words(view: View, alias: str | None, part: str | None, asked: AskedWords) -> Iterator[Edit]:
    """What the op `vocab` does."""
    model = describe(view, alias, part)
    count = model.size(WORDS)
    tables = [each for each in model.parts if each.axis_with({WORDS}) is not None]
    _refuse_unknown(model, count)
    if asked.order is not None:
        _check(asked.order, count)
        steps = [_take(model, each, asked.order) for each in tables]
        size = len(asked.order)
        patch = {**set_dims(model, {WORDS: size}), **_special(view, model, asked.order)}
    else:
        size = _size(asked, count)
        work = view.scratch()
        steps = [step for each in tables for step in _resized(model, each, work, asked.rows, size)]
        patch = set_dims(model, {WORDS: size})
    yield Expand((*steps, *model.configure(patch)))


def _refuse_unknown(model: Described, count: int) -> None:
    sized = [s for s in model.unknown if any(count in aval.shape for aval in model.kin[s].first)]
    if sized:
        message = f"{few([repr(s) for s in sized])} may have a row for each of {count} words, and is not known"
        raise Refusal("structure-model", message, key="alias",
                      hint="Move it to another alias before this step, change it there, and move it back.")  # fmt: skip


def _size(asked: AskedWords, count: int) -> int:
    """The new number of words. Raises Refusal."""
    if asked.size is None and asked.multiple_of is None:
        raise Refusal("structure-words", "give one of size, multiple_of and order",
                      hint="Write `vocab: {multiple_of: 64}`, for instance.")  # fmt: skip
    size, multiple = count if asked.size is None else asked.size, asked.multiple_of or 1
    return -(-size // multiple) * multiple


def _check(order: Sequence[int], count: int) -> None:
    wrong = next((n for n in order if not 0 <= n < count), None)
    if wrong is not None:
        raise Refusal("structure-words", f"there is no word {wrong}: the model has {count}", key="order",
                      hint=f"Valid are 0 to {count - 1}.")  # fmt: skip


def _axis(part: TensorPart) -> int:
    axis = part.axis_with({WORDS})
    assert axis is not None and names_in(part.axes[axis]) == {WORDS}
    return axis


def _take(model: Described, part: TensorPart, order: Sequence[int]) -> Substep:
    return Substep("take_", {"target": model.ref(part.starred), "indices": list(order), "dim": _axis(part)})


def _resized(model: Described, part: TensorPart, work: str, rows: str, size: int) -> Iterator[Substep]:
    """The steps that give a table so many rows."""
    axis, (first, *_) = _axis(part), part.kin.first
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
        yield Substep("move", {"from": model.ref(part.starred), "to": to(work, r"\g<0>")})
        (name,) = part.kin.numbers.values()
        joined = [{"alias": of, "name": captured(name)} for of in (work, rows)]
        yield Substep("concat", {"from": joined, "to": {"alias": model.alias, "name": name}, "dim": axis})
        yield Substep("assert", {"shape": {"of": model.ref(part.starred), "is": [
            size if at == axis else n for at, n in enumerate(first.shape)]}})  # fmt: skip


def _special(view: View, model: Described, order: Sequence[int]) -> dict[str, object]:
    """The new numbers of special words in the config, and a note on those that are gone."""
    places: dict[int, int] = {}
    for place, word in enumerate(order):
        places.setdefault(word, place)
    patch: dict[str, object] = {}
    for key, value in model.place.config.items():
        if not key.endswith("_token_id") or value is None or isinstance(value, bool):
            continue
        words = value if isinstance(value, list) else [value]
        if any(word not in places for word in words if isinstance(word, int)):
            hint = f"Set it by a step `config`: `config: {{patch: {{{key}: NUMBER}}}}`."
            view.note("structure-words", f"{key} {value} is none of the words that stay", "order", hint)
        elif isinstance(value, list):
            patch[key] = [places[word] for word in words if isinstance(word, int)]
        elif isinstance(value, int):
            patch[key] = places[value]
    changed: Mapping[str, object] = {k: v for k, v in patch.items() if v != model.place.config[k]}
    return model.place.patch(changed) if changed else {}
