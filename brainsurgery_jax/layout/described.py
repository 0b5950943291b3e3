"""What a layout takes from the description of a family: dims, and the shapes of tensors by their Hugging Face names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.families.evidence import UNKNOWN, formula, shape_table
from brainsurgery_jax.families.model import Family
from brainsurgery_jax.families.tables import FAMILIES
from brainsurgery_jax.layout.expressions import SizeExpression

BASE = "{base}"
_BRACES = re.compile(r"\{[^{}]*\}")


def family_named(name: object) -> Family:
    """The family with a name. Raises Refusal."""
    known = {family.name: family for family in FAMILIES}
    if not isinstance(name, str) or name not in known:
        near = did_you_mean(name, known) if isinstance(name, str) else ""
        raise Refusal("layout-form", f"there is no family '{name}'.{near}", hint=f"Known: {', '.join(sorted(known))}.")
    return known[name]


def dims_of(family: Family) -> Mapping[str, tuple[SizeExpression, ...]]:
    """The dims of a family, as those of a layout."""
    return {dim: tuple(map(formula, texts)) for dim, texts in family.dims.items()}


def shape_of(family: Family, name: str, *, given: bool) -> tuple[SizeExpression, ...]:
    """The shape of a tensor by the family's table: of a name with formulas in braces, below any base or none.

    Raises Refusal for a name that the table lacks, and, if no shape is `given`, for one that has several there.
    """
    table = shape_table(family)
    starred = _BRACES.sub("*", name.removeprefix(BASE))
    inner = [starred.removeprefix(base) for base in family.bases if starred.startswith(base)]
    found = next((each for each in (*inner, f"^{starred}") if each in table), None)
    if found is None:
        near = did_you_mean(max(inner, key=len, default=starred), table)
        hint = "Correct the name, or leave out `family` and give dims and shapes."
        raise Refusal("layout-name", f"the family '{family.name}' has no tensor '{name}'.{near}", hint=hint)
    shapes: Sequence[tuple[str, ...]] = table[found]
    if given:
        return ()
    if len(shapes) != 1 or UNKNOWN in shapes[0]:
        known = " or ".join(f"[{', '.join(shape)}]" for shape in shapes)
        raise Refusal("layout-form", f"'{name}' may be {known} in the family '{family.name}'",
                      hint="Give the shape that is meant: `shape: [...]`.")  # fmt: skip
    return tuple(map(formula, shapes[0]))
