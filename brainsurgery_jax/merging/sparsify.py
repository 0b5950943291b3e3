"""How the entries of a task vector are chosen that a merge keeps: each as data, so that one pass computes it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.merging.tensors import constant_of, kept_where, namespace


@dataclass(frozen=True)
class Sparsifier:
    """What becomes of a task vector; itself, it keeps all.

    `tensors`, `values`: how many more tensors it takes, each with an element for every element, and small values.
    `rescaled`: the last of these is a factor for what is kept.
    """

    rescaled: bool = False

    @property
    def tensors(self) -> int:
        return 0

    @property
    def values(self) -> int:
        return int(self.rescaled)

    def apply(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        """The task vector with zeros for what is dropped, scaled if it is to be."""
        kept = self.keep(delta, tensors, values)
        return kept * values[-1][0].astype(kept.dtype) if self.rescaled else kept

    def keep(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        """The same, not scaled."""
        return delta


@dataclass(frozen=True)
class KeepBand(Sparsifier):
    """Keeps magnitudes from a least on, or from a least to a greatest: the first of the values. NaN is kept."""

    @property
    def values(self) -> int:
        return 1 + int(self.rescaled)

    def keep(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        size, bounds = abs(delta), values[0].astype(delta.dtype)
        inside = ~(size < bounds[0])
        if bounds.shape[0] > 1:
            inside &= ~(size > bounds[1])
        return kept_where(inside, delta)


@dataclass(frozen=True)
class KeepRandom(Sparsifier):
    """Keeps an element where a random number is below `density`, and divides it by the density if `inverse`."""

    density: float = 1.0
    inverse: bool = False

    @property
    def tensors(self) -> int:
        return 1

    def keep(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        kept = kept_where(tensors[0] < self.density, delta)
        return kept / constant_of(self.density, delta) if self.inverse else kept


@dataclass(frozen=True)
class KeepNone(Sparsifier):
    """Keeps nothing."""

    def keep(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        return namespace(delta).zeros_like(delta)


@dataclass(frozen=True)
class KeepGiven(Sparsifier):
    """Keeps what was computed before."""

    @property
    def tensors(self) -> int:
        return 1

    def keep(self, delta: Array, tensors: Sequence[Array], values: Sequence[Array]) -> Array:
        return tensors[0].astype(delta.dtype)


@dataclass(frozen=True)
class Thinned:
    """How the task vector of one model is made sparse, and what that takes."""

    kept: Sparsifier
    tensors: tuple = ()
    values: tuple = ()
