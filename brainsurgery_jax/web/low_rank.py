"""Ranks that were chosen for matrices: what they keep, how large their factors are, and the steps that make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.web.names import write_pattern

Way = Literal["phlora", "phlora_", "lora_extract"]
"""Factors in place of matrices; matrices of a lower rank in place of matrices; an adapter of the changes."""


class FactorSizes(NamedTuple):
    """Numbers in the matrices, and in what stands for them."""

    before: int
    after: int


class RankBench:
    """Spectra of matrices, and the rank that was chosen for each."""

    def __init__(self, spectra: Mapping[str, Spectrum]):
        self.spectra = {name: one for name, one in spectra.items() if one.is_finite}
        self.left_out = [name for name in spectra if name not in self.spectra]
        self.ranks = dict.fromkeys(self.spectra, 1)

    def choose_rank(self, rank: int, names: Iterable[str]) -> None:
        """Choose a rank, at most the number of singular values of each matrix."""
        for name in names:
            self.ranks[name] = min(max(rank, 1), min(self.spectra[name].shape))

    def choose_energy(self, share: float, names: Iterable[str]) -> list[str]:
        """Choose the least ranks that keep a share of the energy. The names for which more singular values would have
        to be computed; these keep their ranks."""
        unknown: list[str] = []
        for name in names:
            rank = self.spectra[name].rank_of(share)
            if rank is None:
                unknown.append(name)
            else:
                self.ranks[name] = max(rank, 1)
        return unknown

    def energy(self, name: str) -> float | None:
        """The share of the energy that the rank keeps; None where too few singular values are known."""
        one, rank = self.spectra[name], self.ranks[name]
        return float(one.energy[rank - 1]) if rank <= len(one.values) else None

    def sizes(self, names: Iterable[str]) -> FactorSizes:
        """The numbers in matrices, and in the factors of the chosen ranks."""
        shapes = {name: self.spectra[name].shape for name in names}
        return FactorSizes(
            sum(rows * columns for rows, columns in shapes.values()),
            sum(self.ranks[name] * (rows + columns) for name, (rows, columns) in shapes.items()),
        )

    def write_steps(
        self, way: Way, names: Iterable[str], known: Iterable[str], aliases: tuple[str, str]
    ) -> list[object]:
        """The steps, one for each rank. `aliases`: that of the matrices (with `::` where the plan needs it), and for an
        adapter that of the tuned model. The pattern of a step matches its names alone, of those that are known."""
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(self.ranks[name], []).append(name)
        listed = list(known)
        return [_write_step(way, rank, members, listed, aliases) for rank, members in sorted(groups.items())]


def _write_step(way: Way, rank: int, names: list[str], known: list[str], aliases: tuple[str, str]) -> object:
    pattern = write_pattern(names, known)
    head, tuned = aliases
    if way == "lora_extract":
        return {way: {"base": head, "tuned": tuned, "to": "adapter", "rank": rank, "of": pattern}}
    if way == "phlora_":
        return {way: {"target": head + pattern, "rank": rank}}
    tail = ".weight" if all(name.endswith(".weight") for name in names) else ""
    stems = [name.removesuffix(tail) for name in known if name.endswith(tail)]
    stem, tail = write_pattern([name.removesuffix(tail) for name in names], stems), tail.replace(".", r"\.")
    return {way: {"target": f"{head}({stem}){tail}", "target_a": rf"{head}\1.lora_A", "target_b": rf"{head}\1.lora_B",
                  "rank": rank}}  # fmt: skip
