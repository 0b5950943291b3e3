"""A checkpoint as a lazy, immutable mapping from names to arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.select import compile_pattern
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source

if TYPE_CHECKING:
    import numpy as np


class Checkpoint(Mapping[str, "np.ndarray"]):
    """Names to arrays, in state-dict order. Opening reads headers; `checkpoint[name]` reads that tensor anew."""

    __slots__ = ("_avals", "_prefix", "_source")

    def __init__(self, source: Source, avals: Mapping[str, Aval], prefix: str = ""):
        """`avals` are by the names here, `prefix` stands in front of these in the source."""
        self._source, self._avals, self._prefix = source, avals, prefix

    @classmethod
    def open(cls, path: str) -> Checkpoint:
        """The checkpoint at a path, or a part of it: `PATH::PART`. Raises StoreError."""
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
    def path(self) -> str:
        """The path that was opened."""
        return self._source.header.path

    @property
    def source(self) -> Source:
        """The store behind it, for reading slices."""
        return self._source

    def select(self, pattern: str | list[str]) -> Checkpoint:
        """The part whose names match a regex (in full) or a structured pattern. Raises ValueError for a bad one."""
        compiled = compile_pattern(tuple(pattern) if isinstance(pattern, list) else pattern)
        chosen = {name for name, _ in compiled.matches(self._avals)}
        return Checkpoint(self._source, {n: a for n, a in self._avals.items() if n in chosen}, self._prefix)

    def below(self, key: str) -> Checkpoint:
        """The part below a key such as `params` or `model.layers.0`, under the names that it has there. Raises KeyError
        if there is none."""
        head = f"{key}."
        part = {name[len(head) :]: aval for name, aval in self._avals.items() if name.startswith(head)}
        if not part:
            keys = {
                ".".join(name.split(".")[:depth]) for name in self._avals for depth in range(1, name.count(".") + 1)
            }
            raise KeyError(f"nothing lies below '{key}' in {self.path}.{did_you_mean(key, keys)}")
        return Checkpoint(self._source, part, self._prefix + head)

    def to_pytree(self) -> dict[str, Any]:
        """Nested dicts along the dots of the names, of numpy arrays. Raises ValueError if `a` stands beside `a.b`."""
        return nested({name: self[name] for name in self})

    def to_nnx(
        self, model: Any, *, layout: str | None = None, config: Any = None, options: Any = None, cast: bool = False
    ) -> Any:
        """A Flax NNX module like `model`, an `nnx.Module` or what `nnx.eval_shape` makes of one, with these tensors.

        Names are matched along key paths; of random streams the module's own state stays. With `layout` these are
        Hugging Face names, and the model is in that layout, with or without the collection `params` at its top
        (`config`: the content or path of config.json, if it does not lie beside the checkpoint; `options`: those of
        the layout). `cast` lets dtypes differ.
        Raises PlanError with everything that is missing, not expected, or of another shape or dtype.
        """
        from brainsurgery_jax.interop import laid_out, to_nnx

        found = laid_out(self, "to_nnx", layout, config, options) if layout else self
        return to_nnx(found, model, cast=cast, lift=bool(layout))

    def to_linen(
        self,
        template: Any = None,
        *,
        layout: str | None = None,
        config: Any = None,
        options: Any = None,
        cast: bool = False,
    ) -> Any:
        """The variables of a Flax Linen module: nested dicts of jax Arrays, or the structure of `template`, which is
        checked. The other arguments are those of `to_nnx`."""
        from brainsurgery_jax.interop import laid_out, to_linen

        found = laid_out(self, "to_linen", layout, config, options) if layout else self
        return to_linen(found, template, cast=cast, lift=bool(layout))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._avals:
            raise KeyError(f"'{name}' is not in {self.path}.{did_you_mean(name, self._avals)}")
        return self._source.read(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._avals)

    def __len__(self) -> int:
        return len(self._avals)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {len(self)} tensors, {sum(a.nbytes for a in self._avals.values()):,} bytes>"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts along the dots of the names. Raises ValueError where a name is also the prefix of another."""
    root: dict[str, Any] = {}
    leaves: set[tuple[str, ...]] = set()
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = root
        for depth, segment in enumerate(parents):
            if (*parents[: depth + 1],) in leaves:
                prefix = ".".join(parents[: depth + 1])
                raise ValueError(f"'{prefix}' is a tensor and the prefix of '{name}'; a tree cannot hold both")
            node = node.setdefault(segment, {})
        if last in node:
            raise ValueError(f"'{name}' is a tensor and the prefix of others; a tree cannot hold both")
        node[last] = value
        leaves.add((*parents, last))
    return root
