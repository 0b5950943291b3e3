"""Tensors that hold several, such as queries, keys and values: made of these, and cut into them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.evidence import formula, shape_table
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.axes import sections
from brainsurgery_jax.structure.described import Described, captured, describe, filled, to
from brainsurgery_jax.structure.patches import become
from brainsurgery_jax.structure.proof import preserve


class Fusion(NamedTuple):
    """A tensor that holds others: its name and theirs, with `*` for numbers; along which axis they lie, the factors of
    its size, and which of these counts the tensors (None: they lie one after another, in parts of these sizes)."""

    whole: str
    parts: tuple[str, ...]
    axis: int
    counts: tuple[int, ...]
    turn: int | None
    rest: tuple[int, ...]


def fuse(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `fuse` does."""
    model = describe(view, which)
    found = [f for f in _fusions(model) if all(name in model.kin for name in f.parts)]
    if not found:
        _refuse(model, "have no tensors that belong into one")
    work = view.scratch()
    steps = [step for each in found for step in _join(model, each, work)]
    yield preserve(view, model, [*steps, *_identify(view, model, "fuse")], prove=prove)


def unfuse(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `unfuse` does."""
    model = describe(view, which)
    found = [f for f in _fusions(model) if f.whole in model.kin]
    if not found:
        _refuse(model, "have no tensor that holds several")
    work = view.scratch()
    steps = [step for each in found for step in _cut(model, each, work)]
    yield preserve(view, model, [*steps, *_identify(view, model, "unfuse")], prove=prove)


def _refuse(model: Described, why: str) -> None:
    raise Refusal("structure-fuse", f"the layers of '{model.alias}' {why}, as far as the family "
                  f"{model.place.family.name} is known", key="alias",
                  hint="Name the tensors: `concat` joins them, `split` cuts them.")  # fmt: skip


def _fusions(model: Described) -> Iterator[Fusion]:
    table = shape_table(model.place.family)
    for whole, parts in model.place.family.fused.items():
        shape: tuple[str, ...] = table[whole][0]
        axis = next(at for at, text in enumerate(shape) if "+" in text or re.search(r"(?<!\w)\d(?!\w)", text))
        rest = tuple(n for text in shape if (n := model.sizes.of(formula(text))) is not None)
        if len(rest) < len(shape):
            continue
        first, *others = found = sections(shape[axis], model.sizes)
        names = model.names([whole, *parts])
        if others:
            yield Fusion(names[0], tuple(names[1:]), axis, tuple(s.size for s in found), None, rest)
        else:
            turn = next(at for at, factor in enumerate(first.factors) if factor.isdecimal())
            yield Fusion(names[0], tuple(names[1:]), axis, first.counts, turn, rest)


def _around(fusion: Fusion, middle: Sequence[int]) -> list[int]:
    """The shape of the tensor with another one in the place of its axis."""
    return [*fusion.rest[: fusion.axis], *middle, *fusion.rest[fusion.axis + 1 :]]


def _index(fusion: Fusion, at: int, text: str) -> str:
    """A slice of the tensor in its factors (or of itself): all of it, but for one axis."""
    return f"[{', '.join([':'] * (fusion.axis + at) + [text])}]"


def _join(model: Described, fusion: Fusion, work: str) -> Iterator[Substep]:
    """The steps that join the parts of every layer."""
    turn = fusion.turn
    if turn is not None:
        shape = _around(fusion, [1 if at == turn else n for at, n in enumerate(fusion.counts)])
        for name in fusion.parts:
            yield Substep("reshape", {"from": model.ref(name), "to": to(work, r"\g<0>"), "shape": shape})
    source = model.alias if turn is None else work
    for numbers in model.kin[fusion.parts[0]].numbers:
        names = [_number(name, numbers) for name in (fusion.whole, *fusion.parts)]
        joined = [{"alias": source, "name": re.escape(name)} for name in names[1:]]
        yield Substep("concat", {"from": joined, "to": {"alias": source, "name": names[0]},
                                 "dim": fusion.axis + (turn or 0)})  # fmt: skip
    if turn is not None:
        whole = {"alias": work, "name": captured(fusion.whole)}
        yield Substep("reshape", {"from": whole, "to": to(model.alias, filled(fusion.whole)),
                                  "shape": list(fusion.rest)})  # fmt: skip
    yield Substep("delete", {"target": to(model.alias, "|".join(captured(name) for name in fusion.parts))})


def _number(starred: str, numbers: Sequence[int]) -> str:
    for number in numbers:
        starred = starred.replace("*", str(number), 1)
    return starred


def _cut(model: Described, fusion: Fusion, work: str) -> Iterator[Substep]:
    """The steps that cut the tensor of every layer."""
    whole = {"alias": model.alias, "name": captured(fusion.whole)}
    if fusion.turn is None:
        start = 0
        for name, size in zip(fusion.parts, fusion.counts, strict=True):
            index = _index(fusion, 0, f"{start}:{start + size}")
            yield Substep("copy", {"from": {**whole, "slice": index}, "to": to(model.alias, filled(name))})
            start += size
    else:
        held = {"alias": work, "name": captured(fusion.whole)}
        shape = _around(fusion, fusion.counts)
        yield Substep("reshape", {"from": whole, "to": to(work, filled(fusion.whole)), "shape": shape})
        size = prod(n for at, n in enumerate(fusion.counts) if at != fusion.turn)
        for at, name in enumerate(fusion.parts):
            index = _index(fusion, fusion.turn, f"{at}:{at + 1}")
            yield Substep("reshape", {"from": {**held, "slice": index}, "to": to(model.alias, filled(name)),
                                      "shape": _around(fusion, [size])})  # fmt: skip
    yield Substep("delete", {"target": whole})


def _identify(view: View, model: Described, op: str) -> Iterator[Substep]:
    """The step that makes the config that of a class with the new names, or a note that there is none."""
    kind = model.kind
    other = None
    if kind is not None and _is_plain(model):
        fused = next((m for m in MODELS.values() if kind.name in m.unfused), None)
        other = fused if op == "fuse" else next((MODELS[name] for name in kind.unfused), None)
    if kind is None or other is None:
        view.note("structure-fuse", "no class of transformers is known that has these tensors", "alias",
                  "Read the result by another program, or turn it back by the other step.")  # fmt: skip
    else:
        yield from model.configure(become(kind, other, model.place.config))


def _is_plain(model: Described) -> bool:
    """Whether nothing is known that the other class would not do: biases, angles for a part of each head or scaled."""
    config = model.place.config
    ropes = [rope for key in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(key), Mapping)]
    given = {key: value for rope in (config, *ropes) for key, value in rope.items()}
    scaled = given.get("rope_type", given.get("type", "default")) not in ("default", None)
    partial = given.get("partial_rotary_factor", 1) not in (1, 1.0, None)
    biased = any(name.startswith(model.layered()) and name.endswith(".bias") for name in model.kin)
    return not (scaled or partial or biased or model.place.part)
