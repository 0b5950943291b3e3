"""Layers: kept, left out, repeated, and taken from other models, in any order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.evidence import modules_of
from brainsurgery_jax.families.names import expand_braces
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, ask_first, describe, pattern, to
from brainsurgery_jax.structure.patches import renumber
from brainsurgery_jax.structure.proof import preserve
from brainsurgery_jax.structure.quantized_modules import rename_quantized

_RANGE = re.compile(r"(?:(?P<alias>.+)::)?(?P<start>-?\d+)?(?P<range>:(?P<stop>-?\d+)?(?::(?P<step>-?\d+))?)?")


class LayerSource(NamedTuple):
    """A layer: the alias that it comes from (empty: the model itself), and its number there."""

    alias: str
    number: int


class AskedLayers(NamedTuple):
    """The layers of a step: some to keep, to leave out, or to follow twice, or all in their order; and the factor of
    what layers that come again add to the residual stream."""

    keep: Sequence[object] | None
    drop: Sequence[object] | None
    repeat: Sequence[object] | None
    order: Sequence[object] | None
    scale_copies: float
    prove: bool = False


def change_layers(view: View, which: ModelAsked, stack: str, asked: AskedLayers) -> Iterator[Edit]:
    """What the op `layers` does."""
    model = describe(view, which)
    head = model.layered(stack)
    counts = _Counts(view, model, head, stack)
    order = _resolve(asked, counts)
    if not order:
        raise Refusal("structure-layers", "no layer is left", key="keep", hint="Keep at least one.")
    work = view.scratch()
    steps = [
        Substep("move", {"from": to(model.alias, re.escape(head) + r"(\d+)\.(.+)"), "to": to(work, head + r"\1.\2")}),
        *_copies(model, head, work, order),
        *_first(model, head, work, order),
        *_scale(model, head, order, asked.scale_copies),
        *model.configure(renumber(model, stack, [None if s.alias else s.number for s in order])),
        *rename_quantized(view, model, head, order),
    ]
    yield preserve(view, model, steps, prove=asked.prove)


class _Counts:
    """How many layers each alias has, under names that begin as those of the model."""

    def __init__(self, view: View, model: Described, head: str, stack: str) -> None:
        self.view, self.model, self.head = view, model, head
        self.dim = model.stacks[stack or next(iter(model.stacks))]
        self._known = {"": self._own()}

    def _own(self) -> int:
        found = [
            m for m in modules_of(self.model.place.family, self.model.place.base, self.model.kin) if m.head == self.head
        ]
        numbers = sorted(found[0].tensors) if found else []
        count = self.model.size(self.dim)
        if numbers[:count] != list(range(count)) or len(numbers) < count:
            message = f"config.json says {count} layers, but those of '{self.model.alias}' are {_show(numbers)}"
            raise Refusal("structure-layers", message, key="alias", hint=ask_first(self.model.alias))
        return count

    def of(self, alias: str, key: str) -> int:
        """The number of layers of an alias. Raises Refusal if it has none of these names."""
        if alias not in self._known:
            starts = [n.removeprefix(self.head) for n in self.view.names(alias) if n.startswith(self.head)]
            numbers = {int(n.partition(".")[0]) for n in starts if n.partition(".")[0].isdecimal()}
            if not numbers:
                raise Refusal("structure-layers", f"'{alias}' has no layers whose names begin with '{self.head}'",
                              key=key, hint="Rename them first, with a step `move`.")  # fmt: skip
            self._known[alias] = max(numbers) + 1
        return self._known[alias]


def _show(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} in all" if numbers else "none"


def _resolve(asked: AskedLayers, counts: _Counts) -> list[LayerSource]:
    """All layers of the result. Raises Refusal."""
    given = [key for key in ("keep", "drop", "repeat", "order") if getattr(asked, key) is not None]
    if len(given) != 1:
        found = " and ".join(f"`{key}`" for key in given) or "none"
        message = f"give one of keep, drop, repeat and order, got {found}"
        raise Refusal("structure-layers", message, key=given[-1] if given else "",
                      hint="Any mix is an `order`: `layers: {order: ['0:8', '4:8', 12]}`.")  # fmt: skip
    if asked.order is not None:
        return [source for entry in asked.order for source in read_layers(entry, counts, "order")]
    every = range(counts.of("", "alias"))
    chosen = getattr(asked, given[0])
    meant = {source.number for entry in chosen for source in read_layers(entry, counts, given[0], own=True)}
    if asked.repeat is not None:
        return [LayerSource("", n) for n in every for _ in range(1 + (n in meant))]
    return [LayerSource("", n) for n in every if (n in meant) == (asked.keep is not None)]


def read_layers(entry: object, counts: _Counts, key: str, *, own: bool = False) -> list[LayerSource]:
    """The layers that an entry of a list means: a number, a range as Python slices, behind an alias if it has one."""
    found = _RANGE.fullmatch(str(entry).strip()) if isinstance(entry, int | str) and entry is not True else None
    if found is None or not (found["start"] or found["range"]) or (own and found["alias"]):
        raise Refusal("structure-layers", f"{entry!r} is no layer and no range of layers", key=key,
                      hint="Write numbers, and ranges as Python does: `[0, '4:8', '-2:']`.")  # fmt: skip
    alias = found["alias"] or ""
    count = counts.of(alias, key)
    whose = f"'{alias}'" if alias else "the model"
    if not found["range"]:
        number = int(found["start"])
        if not -count <= number < count:
            raise Refusal("structure-layers", f"there is no layer {number}: {whose} has {count}", key=key,
                          hint=f"Layers count from {-count} to {count - 1}.")  # fmt: skip
        return [LayerSource(alias, number % count)]
    start, stop, step = (int(found[k]) if found[k] else None for k in ("start", "stop", "step"))
    over = next((n for n in (start, stop) if n is not None and not -count <= n <= count), None)
    numbers = range(count)[start:stop:step] if step != 0 else range(0)
    if over is not None or not numbers:
        why = f"{whose} has {count} layers" if over is not None else "it has no layers"
        raise Refusal("structure-layers", f"the range '{entry}' is not valid: {why}", key=key,
                      hint=f"Ranges lie within `0:{count}`.")  # fmt: skip
    return [LayerSource(alias, number) for number in numbers]


def _copies(model: Described, head: str, work: str, order: Sequence[LayerSource]) -> Iterator[Substep]:
    """Steps that copy layers to their places: one for each run of layers that move by as much."""
    lead = re.escape(head)
    without = "|".join(pattern(name) for name in _expand(model.place.family.first))
    tail = f"(?P<tail>(?!(?:{without})$).+)" if without else "(?P<tail>.+)"
    places = list(enumerate(order))
    for (alias, shift), group in groupby(places, lambda each: (each[1].alias, each[0] - each[1].number)):
        numbers = "|".join(str(source.number) for _, source in group)
        number = f"${{i{shift:+d}}}" if shift else r"\g<i>"
        yield Substep("copy", {
            "from": to(alias or work, rf"{lead}(?P<i>{numbers})\.{tail}"),
            "to": to(model.alias, rf"{head}{number}.\g<tail>"),
        })  # fmt: skip


def _first(model: Described, head: str, work: str, order: Sequence[LayerSource]) -> Iterator[Substep]:
    """Steps that give the first layer what the first layer alone has."""
    for name in _expand(model.place.family.first):
        if f"{head}*.{name}" in model.kin.keys() & model.first:
            own = rf"{re.escape(head)}0\.({pattern(name)})"
            yield Substep("copy", {"from": to(work, own), "to": to(model.alias, head + r"0.\1")})


def _scale(model: Described, head: str, order: Sequence[LayerSource], factor: float) -> Iterator[Substep]:
    """The step that scales what layers that come again add to the residual stream."""
    seen: set[LayerSource] = set()
    again = [at for at, source in enumerate(order) if source in seen or seen.add(source)]
    if factor == 1 or not again:
        return
    writers = _expand(model.place.family.writers)
    if not writers and model.place.family.is_given:
        message = "the family that the step describes does not say what layers add to the stream"
        hint = "Say it, by names below a layer: `writers: [attn.out.weight, mlp.down.weight]`."
        raise Refusal("structure-layers", message, key="family", hint=hint)
    if not writers:
        raise Refusal("structure-layers", f"layers of {model.place.family.name} normalize what they add up: no factor "
                      "leaves the stream as it is", key="scale_copies", hint="Leave `scale_copies` out.")  # fmt: skip
    numbers = "|".join(map(str, again))
    names = "|".join(pattern(name) for name in writers)
    yield Substep("scale_", {"target": to(model.alias, rf"{re.escape(head)}(?:{numbers})\.(?:{names})"), "by": factor})


def _expand(names: Sequence[str]) -> list[str]:
    return [name for text in names for name in expand_braces(text)]
