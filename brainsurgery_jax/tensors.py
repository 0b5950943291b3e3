"""The tensors of a source as a lazy, immutable mapping from names to arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.nametree import nest
from brainsurgery_jax.rendering.notebook import MOST_ROWS, HtmlTable, as_html, show_in_treescope
from brainsurgery_jax.select import Pattern, compile_pattern
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.key_tree import KeyTree

if TYPE_CHECKING:
    import numpy as np


class Tensors(Mapping[str, "np.ndarray"]):
    """Names to arrays, in state-dict order. Opening reads headers; `checkpoint[name]` reads that tensor anew."""

    __slots__ = ("_avals", "_pattern", "_prefix", "_source")

    def __init__(self, source: Source, avals: Mapping[str, Aval], prefix: str = "", pattern: Pattern | None = None):
        """`avals` are by the names here, `prefix` stands in front of these in the source. `pattern` chose them."""
        self._source, self._avals, self._prefix, self._pattern = source, avals, prefix, pattern

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a checkpoint of any format. See `brainsurgery_jax.open`.

        **Arguments**: the path of a file or a folder, or a part of one: `PATH::PART`.
        **Returns** the lazy mapping.
        **Raises** StoreError for what cannot be read.
        **Example**:

        >>> bs.Checkpoint.open("model.safetensors")
        <Checkpoint model.safetensors: 3 tensors, 144 bytes>
        """
        source = open_source(path)
        return cls(source, {name: info.aval for name, info in source.header.tensors.items()})

    @property
    def avals(self) -> Mapping[str, Aval]:
        """Shapes and dtypes, from the header."""
        return dict(self._avals)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's own metadata."""
        return self._source.header.metadata

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What is not read although it lies beside what is, and how to read it."""
        return tuple(note.at() for note in self._source.header.notes)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names of what it holds beside tensors, which is not read."""
        return tuple(self._source.header.left_out)

    @property
    def tree(self) -> KeyTree:
        """The tree that the tensors lie in, as far as the checkpoint tells: leaves that hold no tensor, and types."""
        tree, pattern = self._source.header.tree, self._pattern
        names = {new: self._prefix + new for new in self._avals}
        below = {n[len(self._prefix) :]: n for n in tree.others if n.startswith(self._prefix)}
        kept = below if pattern is None else {n: below[n] for n, _ in pattern.matches(below)}
        return tree.choose(names, kept)

    @property
    def path(self) -> str:
        """The path that was opened."""
        return self._source.header.path

    @property
    def prefix(self) -> str:
        """What stands in front of the names here in the source."""
        return self._prefix

    @property
    def source(self) -> Source:
        """The store behind it, for reading slices."""
        return self._source

    def select(self, pattern: str | list[str]) -> Self:
        """Select tensors by name. Nothing is read.

        **Arguments**: a regular expression that matches whole names, or a structured pattern (a list).
        **Returns** the part whose names match.
        **Raises** ValueError for a pattern that cannot be read.
        **Example**:

        >>> list(bs.open("model.safetensors").select("layers.*w"))
        ['layers.0.w', 'layers.1.w']
        """
        compiled = compile_pattern(tuple(pattern) if isinstance(pattern, list) else pattern)
        chosen = {name for name, _ in compiled.matches(self._avals)}
        return type(self)(self._source, {n: a for n, a in self._avals.items() if n in chosen}, self._prefix, compiled)

    def below(self, key: str) -> Self:
        """Select the tensors below a key. Nothing is read.

        **Arguments**: a key such as `params` or `model.layers.0`.
        **Returns** the part below it, under the names that it has there.
        **Raises** KeyError if nothing is below the key.
        **Example**:

        >>> list(bs.open("model.safetensors").below("layers"))
        ['0.w', '1.w']
        """
        head = f"{key}."
        part = {name[len(head) :]: aval for name, aval in self._avals.items() if name.startswith(head)}
        if not part:
            keys = {
                ".".join(name.split(".")[:depth]) for name in self._avals for depth in range(1, name.count(".") + 1)
            }
            raise KeyError(f"nothing lies below '{key}' in {self.path}.{did_you_mean(key, keys)}")
        return type(self)(self._source, part, self._prefix + head)

    def to_pytree(self) -> dict[str, Any]:
        """Read all tensors as a pytree.

        **Returns** nested dicts of numpy arrays, along the dots of the names.
        **Raises** ValueError if there are tensors `a` and `a.b`, StoreError for what cannot be read.
        **Example**:

        >>> sorted(bs.open("model.safetensors").to_pytree()["layers"])
        ['0', '1']
        """
        return nest({name: self[name] for name in self})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._avals:
            raise KeyError(f"'{name}' is not in {self.path}.{did_you_mean(name, self._avals)}")
        return self._source.read(self._prefix + name)

    def __contains__(self, name: object) -> bool:
        return name in self._avals  # the mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._avals)

    def __len__(self) -> int:
        return len(self._avals)

    def __repr__(self) -> str:
        nbytes = sum(aval.nbytes for aval in self._avals.values())
        return f"<{type(self).__name__} {self.path}: {len(self):,} tensors, {nbytes:,} bytes>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: the first tensors with shapes and dtypes. Nothing is read."""
        facts = [f"{sum(aval.size for aval in self._avals.values()):,} parameters", *self._source.header.files[:3]]
        first = list(islice(self._avals.items(), MOST_ROWS))
        rows = [(name, str(list(aval.shape)), aval.dtype.name, f"{aval.nbytes:,}") for name, aval in first]
        table = HtmlTable(("tensor", "shape", "dtype", "bytes"), rows, len(self) - len(rows))
        return as_html(repr(self)[1:-1], facts, table)
