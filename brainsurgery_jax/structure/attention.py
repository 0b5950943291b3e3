"""The products of attention in another basis: queries with keys, and values with the matrix behind attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, captured, describe, filled, to
from brainsurgery_jax.structure.projections import WIDTH, output_of, projection, refuse_clipped, sums_values
from brainsurgery_jax.structure.proof import preserve

QK, OV, BOTH = "qk", "ov", "both"


class HeadColumns(NamedTuple):
    """Queries, keys or values of all heads: names of a weight `w` and a bias `b` (empty: none), an expression for both
    as columns [in (+ 1), out], the bias the last row; and from such columns `c` expressions for the weight and bias."""

    weight: str
    bias: str
    columns: str
    into_weight: str
    into_bias: str


class AttentionSizes(NamedTuple):
    """Heads, groups of heads that share keys and values, the width of a head and of the model, and the rows of columns:
    the width, and one more with a bias."""

    heads: int
    groups: int
    head: int
    width: int
    rows: int


def refactor_attention(
    view: View, which: ModelAsked, products: str, *, prove: bool
) -> Iterator[Edit]:  # fmt: skip
    """What the op `refactor_attention` does."""
    model = describe(view, which)
    _refuse(model, products)
    work = view.scratch()
    steps = list[Substep]()
    if products != OV:
        steps += _refactor_scores(model, work)
    if products != QK:
        steps += _refactor_values(model, work)
    yield preserve(view, model, steps, prove=prove)


def _refuse(model: Described, products: str) -> None:
    kind = model.place.kind
    if not sums_values(model):
        raise Refusal("structure-model", f"it is not known that attention of a {kind} only sums up values",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    if products != OV and (not model.place.family.positions or "q_norm" in model.roles):
        raise Refusal("structure-model", f"a {kind} turns queries and keys by their positions (RoPE) between the two "
                      "matrices, so that their product is another one for each distance", key="products",
                      hint="Write `products: ov`.")  # fmt: skip
    refuse_clipped(model, "values are clipped between the two matrices")


# --- Products ---------------------------------------------------------------------------------------------------------


def _refactor_scores(model: Described, work: str) -> Iterator[Substep]:
    """The steps for queries and keys: both get the roots of the singular values."""
    query, key = _columns(model, 0), _columns(model, 1)
    sizes = _sizes(model, query)
    yield _read(model, query, work, "left", _split(sizes, query.columns))
    yield _read(model, key, work, "right", f"transpose({_split(sizes, key.columns)}, (0, 2, 1))")
    yield _refactor(work, "both")
    yield from _write(model, query, work, "left", _join(sizes, "f"))
    yield from _write(model, key, work, "right", _join(sizes, "transpose(f, (0, 2, 1))"))


def _refactor_values(model: Described, work: str) -> Iterator[Substep]:
    """The steps for values and the matrix behind attention: rows of the second are orthonormal for all heads of a
    group together, and the first has the singular values."""
    value = _columns(model, 2)
    sizes = _sizes(model, value)
    name, out_first = output_of(model)
    each, rest = sizes.heads // sizes.groups, (sizes.groups, sizes.head, -1)
    turn = "transpose(w, (1, 0))" if out_first else "w"
    apart = f"reshape({turn}, ({sizes.groups}, {each}, {sizes.head}, {sizes.width}))"
    back = f"transpose(reshape(f, ({sizes.groups}, {sizes.head}, {each}, {sizes.width})), (0, 2, 1, 3))"
    whole = f"reshape({back}, ({sizes.heads * sizes.head}, {sizes.width}))"
    matrix = {"w": {"alias": model.alias, "name": captured(name)}}
    yield _read(model, value, work, "left", _split(sizes, value.columns))
    yield Substep("compute", {"from": matrix, "expr": f"reshape(transpose({apart}, (0, 2, 1, 3)), {rest})",
                              "to": to(work, _scratch(name, "right"))})  # fmt: skip
    yield _refactor(work, "left")
    yield from _write(model, value, work, "left", _join(sizes, "f"))
    read = {**matrix, "f": to(work, _scratch(name, "right"))}
    yield Substep("compute", {"from": read, "expr": f"transpose({whole}, (1, 0))" if out_first else whole})


def _refactor(work: str, values: str) -> Substep:
    return Substep("refactor", {
        "left": to(work, r"(.+)\.left"), "right": to(work, r"\1.right"), "to_left": to(work, r"\1.left"),
        "to_right": to(work, r"\1.right"), "values": values,
    })  # fmt: skip


def _scratch(starred: str, side: str) -> str:
    """The name of a factor of a layer, as a template for what `captured` finds."""
    return rf"\g<1>.{side}" if "*" in starred else side


def _split(sizes: AttentionSizes, columns: str) -> str:
    """Columns as [groups, in, width of a head]: those of queries have a head for each group."""
    return f"transpose(reshape({columns}, ({sizes.rows}, {sizes.groups}, {sizes.head})), (1, 0, 2))"


def _join(sizes: AttentionSizes, factor: str) -> str:
    """The columns of such a factor."""
    return f"reshape(transpose({factor}, (1, 0, 2)), ({sizes.rows}, {sizes.groups * sizes.head}))"


def _read(model: Described, each: HeadColumns, work: str, side: str, expr: str) -> Substep:
    """The step that makes a factor of a projection."""
    source: dict[str, object] = {"w": {"alias": model.alias, "name": captured(each.weight)}}
    if each.bias:
        source["b"] = to(model.alias, filled(each.bias))
    return Substep("compute", {"from": source, "expr": expr, "to": to(work, _scratch(each.weight, side))})


def _write(model: Described, each: HeadColumns, work: str, side: str, columns: str) -> Iterator[Substep]:
    """The steps that put columns back into the weight and the bias of a projection."""
    for name, variable, expr in ((each.weight, "w", each.into_weight), (each.bias, "b", each.into_bias)):
        if name:
            tensors = {variable: {"alias": model.alias, "name": captured(name)}, "f": to(work, _scratch(name, side))}
            yield Substep("compute", {"from": tensors, "expr": expr.replace("COLUMNS", columns)})


# --- Where they are ---------------------------------------------------------------------------------------------------


def _sizes(model: Described, each: HeadColumns) -> AttentionSizes:
    heads, width = model.size("N"), model.size(WIDTH)
    groups = heads if model.sizes.values.get("K") is None else model.size("K")
    head = model.size("H" if model.sizes.values.get("W") is None else "W")
    return AttentionSizes(heads, groups, head, width, width + bool(each.bias))


def _columns(model: Described, at: int) -> HeadColumns:
    """Queries (0), keys (1) or values (2) of a model. Raises Refusal if they are not where its class has them."""
    each, width = projection(model, at), model.size(WIDTH)
    row = f"reshape({each.entries.part}, (1, -1))"
    return HeadColumns(
        each.weight, each.bias,
        f"concat([{each.columns.part}, {row}], axis=0)" if each.bias else each.columns.part,
        each.columns.whole.replace("NEW", f"COLUMNS[:{width}]"),
        each.entries.whole.replace("NEW", f"reshape(COLUMNS[{width}:], (-1,))"),
    )  # fmt: skip
