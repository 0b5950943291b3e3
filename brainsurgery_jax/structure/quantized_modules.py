"""What config.json says of quantized modules by their names, after the layers of a model were put in another order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.codes import CONFIG_KEY, find_codes, key_of_floats
from brainsurgery_jax.protocol import Substep, View
from brainsurgery_jax.select import names_begun
from brainsurgery_jax.structure.described import Described

_MARKED = ("re:", "+:", "-:")
"""How patterns begin: those of compressed-tensors, and those of GPTQModel."""


class NewOrder(NamedTuple):
    """The layers below `head` (`model.layers.`): of each place the number that its layer had, or None if it is another
    model's; the modules below the layers of each number, and all others, by their names."""

    head: str
    numbers: Sequence[int | None]
    below: Mapping[int, Sequence[str]]
    others: Sequence[str]

    @property
    def last(self) -> str:
        """The last part of the head, as a pattern."""
        return re.escape(self.head.rstrip(".").rpartition(".")[2])

    def places(self, number: int) -> list[int]:
        """Where the layer of a number is now."""
        return [at for at, own in enumerate(self.numbers) if own == number]

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """The modules below the layers: the names that they had, and those that they have."""
        for at, number in enumerate(self.numbers):
            for tail in self.below.get(number, ()) if number is not None else ():
                yield f"{self.head}{number}.{tail}", f"{self.head}{at}.{tail}"


def rename_quantized(view: View, model: Described, head: str, sources: Sequence[tuple[str, int]]) -> Iterator[Substep]:
    """The step that renames modules in the `quantization_config` of a model whose layers come from these aliases and
    numbers (empty: from itself), if that changes anything."""
    settings = model.place.whole.get(CONFIG_KEY)
    if not isinstance(settings, Mapping):
        return
    below, others = defaultdict[int, list[str]](list), list[str]()
    for module in dict.fromkeys(name.rpartition(".")[0] for name in view.names(model.alias)):
        number, _, tail = module.removeprefix(head).partition(".")
        if module.startswith(head) and number.isdecimal():
            below[int(number)].append(tail)
        else:
            others.append(module)
    order = NewOrder(head, [None if alias else number for alias, number in sources], below, others)
    made = _rename(settings, order)
    assert isinstance(made, dict)
    if floats := [module for source in enumerate(sources) for module in _floats_of_others(view, head, *source)]:
        key = key_of_floats(settings)
        known = made.get(key)
        made[key] = list(dict.fromkeys([*(known if isinstance(known, list) else ()), *floats]))
    if made != settings:
        # The key is removed before, since a patch would keep what is no longer there.
        yield Substep("config", {"remove": [CONFIG_KEY], "patch": {CONFIG_KEY: made}, "alias": model.alias})


def _floats_of_others(view: View, head: str, at: int, source: tuple[str, int]) -> Iterator[str]:
    """The modules of a layer of another model whose matrices are floats, by the names that they get."""
    alias, number = source
    if not alias:
        return
    names = view.names(alias)
    start, known = f"{head}{number}.", set(names)
    for name in names:
        if name.startswith(start) and name.endswith(".weight") and find_codes(name, known.__contains__) is None:
            aval = view.fetch(alias, name).aval
            if len(aval.shape) > 1 and aval.dtype.is_float:
                yield f"{head}{at}.{name.removeprefix(start).removesuffix('.weight')}"


def _rename(value: object, order: NewOrder) -> object:
    """A part of a config with other names of modules: in lists, and as keys."""
    if isinstance(value, Mapping):
        pairs = ((new, each) for key, each in value.items() for new in _names(key, order))
        return {key: _rename(each, order) for key, each in pairs}
    if isinstance(value, list):
        return [new for each in value for new in (_names(each, order) if isinstance(each, str) else [each])]
    return value


def _names(entry: str, order: NewOrder) -> list[str]:
    """What stands in place of a name, or of a pattern of names."""
    mark = next((mark for mark in _MARKED if entry.startswith(mark)), "")
    if mark or set(entry) & set("\\[(^$|+"):
        return [mark + pattern for pattern in _patterns(entry.removeprefix(mark), order)]
    found = re.fullmatch(rf"(?P<lead>(?:.*\.)?{order.last}\.)(?P<number>\d+)(?P<tail>(?:\..*)?)", entry)
    # The names of a config may lack the beginning of those of the tensors, or have another one before it.
    if found is None:
        return [entry]
    head, lead = f".{order.head}", f".{found['lead']}"
    if not head.endswith(lead) and not lead.endswith(head):
        return [entry]
    return [f"{found['lead']}{at}{found['tail']}" for at in order.places(int(found["number"]))]


def _patterns(pattern: str, order: NewOrder) -> list[str]:
    """The patterns that match the modules which one matched before: itself, if it does; else with other numbers, if it
    has one; else their names."""
    pairs = [*order.pairs, *((name, name) for name in order.others)]
    before = names_begun(pattern, [old for old, _ in pairs])
    wanted, names = {new for old, new in pairs if old in before}, [new for _, new in pairs]

    def fit(patterns: Sequence[str]) -> bool:
        return wanted == {name for p in patterns for name in names_begun(p, names)}

    if fit([pattern]):
        return [pattern]
    numbers = [*re.finditer(rf"(?<![\w\\]){order.last}\\?\.(\d+)(?!\d)", pattern)]
    if len(numbers) == 1:
        start, stop = numbers[0].span(1)
        changed = [f"{pattern[:start]}{at}{pattern[stop:]}" for at in order.places(int(numbers[0][1]))]
        if fit(changed):
            return changed
    return [f"{re.escape(name)}$" for name in dict.fromkeys(names) if name in wanted]
