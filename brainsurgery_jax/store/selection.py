"""What of a checkpoint is read: the part that was named, without what is to be left out. The one place that refuses a
checkpoint because something in it cannot be read, or because it is not clear what is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.address import WHOLE, Address
from brainsurgery_jax.store.base import FileRun, Header, Nesting, Note, Source, Unread
from brainsurgery_jax.store.failures import no_tensor
from brainsurgery_jax.store.io.forwarding import SourceOver
from brainsurgery_jax.store.key_paths import name_of
from brainsurgery_jax.wording import few

if TYPE_CHECKING:
    import numpy as np


def select(source: Source, address: Address) -> Source:
    """The source of what an address means. Raises StoreError where that is not clear, is not there, or holds something
    that cannot be read."""
    header = source.header
    choice = choose_part(header, address)
    if unread := choice.choose(header.unread):
        raise _unreadable(header, address, choice, {new: header.unread[old] for new, old in unread.items()})
    if not choice.part and not choice.leave_out:
        return source
    tensors = choice.choose(header.tensors)
    chosen = replace(
        header,
        path=str(address),
        tensors={new: header.tensors[old] for new, old in tensors.items()},
        plain={},  # a file that is passed on as it stands would have its names, not these
        left_out=dict(_list_left_out(header, address, choice)),
        parts=(),
        notes=tuple(_notes(header, address, choice)),
        nesting=_nesting(header.nesting, choice.part, tensors),
        tree=header.tree.choose(tensors, choice.choose(header.tree.others)),
    )
    return SelectedSource(source, tensors, chosen)


class Choice(NamedTuple):
    """A part of a checkpoint (empty: all of it) without some of its entries, which go by their names in the part.
    `mark` stands between the keys of a name: a dot, or the slash of `.npz` files of JAX programs."""

    part: str
    leave_out: tuple[str, ...]
    mark: str = "."

    def name(self, entry: str) -> str | None:
        """The name of an entry in the part; None for one that is not of it."""
        if not self.part:
            return entry
        if entry == self.part:
            return entry.rpartition(self.mark)[2]
        below = f"{self.part}{self.mark}"
        return entry.removeprefix(below).lstrip("/") if entry.startswith(below) else None

    def choose(self, entries: Iterable[str]) -> dict[str, str]:
        """The entries that are meant: by their names in the part, those in the whole."""
        names = ((self.name(entry), entry) for entry in entries)
        return {n: entry for n, entry in names if n is not None and not any(is_below(n, out) for out in self.leave_out)}


def is_below(name: str, entry: str) -> bool:
    """Whether a name is that of an entry, or of something in it."""
    return name == entry or name.startswith((f"{entry}.", f"{entry}/"))


def choose_part(header: Header, address: Address) -> Choice:
    """What an address means of a checkpoint. Raises StoreError where that is not clear, or is not there."""
    part = _part(header, address)
    if not part and not address.leave_out:
        return Choice("", (), ".")
    entries = [*header.tensors, *header.unread, *header.left_out]
    dotted = not part or any(entry == part or entry.startswith(f"{part}.") for entry in entries)
    choice = Choice(part, address.leave_out, "." if dotted else "/")
    _check_part(header, choice, entries)
    names = [name for name in map(choice.name, entries) if name is not None]
    for out in choice.leave_out:
        if not any(is_below(name, out) for name in names):
            problem = f"has no entry '{out}' to leave out.{did_you_mean(out, names)}"
            raise StoreError(header.path, problem, remedy="Drop it, or correct its name.")
    return choice


def _part(header: Header, address: Address) -> str:
    """The part that is meant; empty for the whole."""
    if address.part:
        return "" if address.part == WHOLE else address.part
    if len(header.parts) > 1:
        found = ", ".join(f"'{part}'" for part in header.parts)
        *ways, whole = [f"'{address._replace(part=part)}'" for part in (*header.parts, WHOLE)]
        remedy = f"Name the one that you mean: {' or '.join(ways)}; or {whole}, all of it under longer names."
        raise StoreError(header.path, f"holds several models: {found}", remedy=remedy)
    return "".join(header.parts)


def _check_part(header: Header, choice: Choice, entries: Sequence[str]) -> None:
    """Refuse a part that is not there or holds no tensor, and one that may be either of two."""
    part = choice.part
    inside = [entry for entry in entries if choice.name(entry) is not None]
    if part and part in inside and len(inside) > 1:
        problem = f"has an entry '{part}' and others below that name, so that it is not clear which is meant"
        raise StoreError(header.path, problem, remedy="Read all of it, and choose by references.")
    if part and not any(choice.name(name) is not None for name in (*header.tensors, *header.unread)):
        near = did_you_mean(part, _containers(entries))
        problem = f"holds no tensor in '{part}'" if inside else f"has no part '{part}'"
        remedy = f"There are: {few([*_count_tensors(header)])}."
        raise StoreError(header.path, f"{problem}.{near}", remedy=remedy)


def _containers(names: Iterable[str]) -> dict[str, None]:
    keys = (name.split(".") for name in names)
    return {".".join(path[:end]): None for path in keys for end in range(1, len(path))}


def _unreadable(header: Header, address: Address, choice: Choice, unread: Mapping[str, Unread]) -> StoreError:
    (name, (why, remedy)), *more = unread.items()
    problem = why if not more else f"{why}; nor can be read: {few([n for n, _ in more])}"
    if choice.choose(header.tensors).keys() - unread.keys():
        rest = address._replace(leave_out=(*address.leave_out, *unread))
        remedy = f"To read the rest without {'them' if more else 'it'}, write '{rest}'. {remedy}"
    return StoreError(header.path, f"cannot be read: {problem}", tensor=name, remedy=remedy.strip())


# --- What lies beside a part ------------------------------------------------------------------------------------------


def _outermost(header: Header) -> dict[str, str]:
    """By the name of each entry, the key under which it lies at the top."""
    found = {name: name.partition(".")[0] for name in (*header.tensors, *header.unread, *header.left_out)}
    if header.nesting is not None:
        found |= {name: str(path[0]) for name, path in header.nesting.tensors.items() if path}
        found |= {name_of(path): str(path[0]) for path in header.nesting.values if path}
    return found


def _count_tensors(header: Header) -> dict[str, int]:
    """The outermost entries that hold tensors, and how many."""
    outermost = _outermost(header)
    return Counter(outermost[name] for name in (*header.tensors, *header.unread))


def _notes(header: Header, address: Address, choice: Choice) -> Iterable[Note]:
    """The notes on a checkpoint that concern what is read of it; and one on the tensors that lie beside a part that was
    not named."""
    if address.part:
        yield from (note for note in header.notes if any(choice.name(entry) is not None for entry in note.about))
        return
    yield from header.notes
    others = {name: n for name, n in _count_tensors(header).items() if choice.part and name != choice.part}
    if others:
        found = few([f"{name} ({n} tensor{'s' * (n > 1)})" for name, n in others.items()])
        first, whole = address._replace(part=next(iter(others))), address._replace(part=WHOLE)
        message = f"{header.path}: '{choice.part}' is read; beside it there are {found}"
        yield Note("input-parts", message, f"To read another part, write '{first}'; to read all of it, '{whole}'.")


def _list_left_out(header: Header, address: Address, choice: Choice) -> Iterable[tuple[str, str]]:
    """What is left out of a part; and, unless it was named, the outermost entries beside it that hold no tensor."""
    for new, old in choice.choose(header.left_out).items():
        yield new, header.left_out[old]
    if choice.part and not address.part:
        outermost, parts = _outermost(header), _count_tensors(header)
        for name, kind in header.left_out.items():
            if choice.name(name) is None and outermost[name] not in parts:
                yield outermost[name], kind if name == outermost[name] else "dict"


def _nesting(nesting: Nesting | None, part: str, tensors: Mapping[str, str]) -> Nesting | None:
    if nesting is None:
        return None
    base = next((path for path in nesting.kinds if name_of(path) == part), ())
    return replace(nesting, base=base, tensors={new: nesting.tensors[old] for new, old in tensors.items()})


class SelectedSource(SourceOver):
    """Some tensors of another source, under names of their own; see `base.Source`."""

    def __init__(self, source: Source, names: Mapping[str, str], header: Header):
        super().__init__(header, source)
        self._names = names

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        return self._source.read(self._of(name), box)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        return self._source.read_range(self._of(name), start, stop)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other."""
        return self._source.file_run(self._of(name), start, stop)

    def _of(self, name: str) -> str:
        if name not in self._names:
            raise no_tensor(self.header.path, name, self._names)
        return self._names[name]
