"""How the entries of a task vector are chosen that a merge keeps: each as data, so that one pass computes it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.merging.tensors import constant_of, namespace


@dataclass(frozen=True)
class Sparsifier:
    """What becomes of a task vector in the elementwise pass; itself, it keeps all.

    `extras`: how many more tensors it takes, each with an element for every element. `rescaled`: the last of them is a
    factor for what is kept.
    """

    rescaled: bool = False

    @property
    def extras(self) -> int:
        return int(self.rescaled)

    def apply(self, delta: Array, extras: Sequence[Array]) -> Array:
        """The task vector with zeros for what is dropped, scaled if it is to be."""
        kept = self.keep(delta, extras)
        return kept * extras[-1].astype(kept.dtype) if self.rescaled else kept

    def keep(self, delta: Array, extras: Sequence[Array]) -> Array:
        """The same, not scaled."""
        return delta


@dataclass(frozen=True)
class KeepBand(Sparsifier):
    """Keeps magnitudes from a least to a greatest; NaN is kept. Of `bounds` 1 there is only a least, of 2 both."""

    bounds: int = 1

    @property
    def extras(self) -> int:
        return self.bounds + int(self.rescaled)

    def keep(self, delta: Array, extras: Sequence[Array]) -> Array:
        size = abs(delta)
        outside = size < extras[0].astype(size.dtype)
        if self.bounds > 1:
            outside = outside | (size > extras[1].astype(size.dtype))
        return namespace(delta).where(outside, constant_of(0, delta), delta)


@dataclass(frozen=True)
class KeepRandom(Sparsifier):
    """Keeps an element where a random number is below `density`, and divides it by the density if `inverse`."""

    density: float = 1.0
    inverse: bool = False

    @property
    def extras(self) -> int:
        return 1 + int(self.rescaled)

    def keep(self, delta: Array, extras: Sequence[Array]) -> Array:
        xp = namespace(delta)
        kept = xp.where(extras[0] < self.density, delta, constant_of(0, delta))
        return kept / constant_of(self.density, delta) if self.inverse else kept


@dataclass(frozen=True)
class KeepNone(Sparsifier):
    """Keeps nothing."""

    def keep(self, delta: Array, extras: Sequence[Array]) -> Array:
        return namespace(delta).zeros_like(delta)


@dataclass(frozen=True)
class KeepGiven(Sparsifier):
    """Keeps what was computed before."""

    @property
    def extras(self) -> int:
        return 1 + int(self.rescaled)

    def keep(self, delta: Array, extras: Sequence[Array]) -> Array:
        return extras[0].astype(delta.dtype)
