"""Equations of `einsum`: a letter for each axis, `oi,ir->or`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_EQUATION = re.compile(r"[A-Za-z]*(,[A-Za-z]*)*->[A-Za-z]*")

ADVICE = "Give each axis a letter, the result after '->', no dots: 'oi,ir->or', 'bij,bjk->bik', 'ij->i'."


class Equation(NamedTuple):
    """The axes of each operand, and of the result."""

    terms: tuple[str, ...]
    result: str

    @property
    def is_plain(self) -> bool:
        """Whether numpy does it by BLAS, as fast as compiled code: no axis that all three share, none twice."""
        once = all(len(set(term)) == len(term) for term in self.terms)
        return once and (len(self.terms) == 1 or not set(self.terms[0]) & set(self.terms[1]) & set(self.result))


def read_equation(text: str) -> Equation | None:
    """The equation that a text spells; None if it is none."""
    plain = text.replace(" ", "")
    if not _EQUATION.fullmatch(plain):
        return None
    operands, result = plain.split("->")
    return Equation(tuple(operands.split(",")), result)


def letter_sizes(equation: Equation, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The size of each letter. Raises ValueError where the shapes of the operands or the result do not fit."""
    if len(equation.terms) != len(shapes):
        raise ValueError(f"it is of {len(equation.terms)} tensors, not of {len(shapes)}")
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.terms, shapes, strict=True):
        if len(term) != len(shape):
            raise ValueError(f"'{term}' has {len(term)} axes, the tensor {list(shape)} has {len(shape)}")
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"'{letter}' is {sizes[letter]} and {size}; axes with one letter have one size")
    for at, letter in enumerate(equation.result):
        if letter not in sizes:
            raise ValueError(f"no operand has the axis '{letter}' of the result")
        if letter in equation.result[:at]:
            raise ValueError(f"'{letter}' stands twice in the result")
    return sizes
