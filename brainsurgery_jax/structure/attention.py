"""The products of attention in another basis: queries with keys, and values with the matrix behind attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Substep, View
from brainsurgery_jax.structure.centring import CLIP, sums_values
from brainsurgery_jax.structure.described import Described, captured, describe, filled, to
from brainsurgery_jax.structure.proof import preserve

QK, OV, BOTH = "qk", "ov", "both"
_FUSED, _BESIDE = "gpt2", "gpt_neox"


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
    view: View, alias: str | None, part: str | None, products: str, *, prove: bool
) -> Iterator[Edit]:  # fmt: skip
    """What the op `refactor_attention` does."""
    model = describe(view, alias, part)
    _refuse(model, products)
    work = view.scratch()
    steps = list[Substep]()
    if products != OV:
        steps += _refactor_scores(model, work)
    if products != QK:
        steps += _refactor_values(model, work)
    yield preserve(view, model, steps, prove=prove)


def _refuse(model: Described, products: str) -> None:
    kind = str(model.place.kind)
    if kind not in (_FUSED, _BESIDE) and not sums_values(model):
        raise Refusal("structure-model", f"it is not known that attention of a {model.place.kind} only sums up values",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    if products != OV and kind != _FUSED:
        raise Refusal("structure-model", f"a {kind} turns queries and keys by their positions (RoPE) between the two "
                      "matrices, so that their product is another one for each distance", key="products",
                      hint="Write `products: ov`.")  # fmt: skip
    if model.place.config.get(CLIP) is not None:
        raise Refusal("structure-model", f"config.json of '{model.alias}' has {CLIP}: values are clipped between the "
                      "two matrices", key="alias", hint="Leave the step out.")  # fmt: skip


# --- Products ---------------------------------------------------------------------------------------------------------


def _refactor_scores(model: Described, work: str) -> Iterator[Substep]:
    """The steps for queries and keys: both get the roots of the singular values."""
    query, key = _projection(model, 0), _projection(model, 1)
    sizes = _sizes(model, query)
    yield _read(model, query, work, "left", _split(sizes, query.columns))
    yield _read(model, key, work, "right", f"transpose({_split(sizes, key.columns)}, (0, 2, 1))")
    yield _refactor(work, "both")
    yield from _write(model, query, work, "left", _join(sizes, "f"))
    yield from _write(model, key, work, "right", _join(sizes, "transpose(f, (0, 2, 1))"))


def _refactor_values(model: Described, work: str) -> Iterator[Substep]:
    """The steps for values and the matrix behind attention: rows of the second are orthonormal for all heads of a
    group together, and the first has the singular values."""
    value = _projection(model, 2)
    sizes = _sizes(model, value)
    name, transposed = _output(model)
    each, rest = sizes.heads // sizes.groups, (sizes.groups, sizes.head, -1)
    turn = "transpose(w, (1, 0))" if transposed else "w"
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
    yield Substep("compute", {"from": read, "expr": f"transpose({whole}, (1, 0))" if transposed else whole})


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
    heads, width = model.size("N"), model.size("D")
    groups = heads if model.sizes.values.get("K") is None else model.size("K")
    head = model.size("H" if model.sizes.values.get("W") is None else "W")
    return AttentionSizes(heads, groups, head, width, width + bool(each.bias))


def _output(model: Described) -> tuple[str, bool]:
    """The matrix behind attention, and whether it is [out, in]."""
    return model.names([f"{model.roles['o']}.weight"])[0], str(model.place.kind) != _FUSED


def _projection(model: Described, at: int) -> HeadColumns:
    """Queries (0), keys (1) or values (2) of a model. Raises Refusal if they are not where its class has them."""
    kind = str(model.place.kind)
    module = model.roles["qkv" if kind in (_FUSED, _BESIDE) else "qkv"[at]]
    weight, bias = model.names([f"{module}.weight", f"{module}.bias"])
    if weight not in model.kin:
        raise Refusal("structure-model", f"'{model.alias}' has no '{weight}', as a {kind} has it", key="alias",
                      hint="Put a step `fuse` or `unfuse` before this.")  # fmt: skip
    bias, width = bias if bias in model.kin else "", model.size("D")
    part = _part(model, kind, at)
    return HeadColumns(
        weight, bias, f"concat([{part.columns}, reshape({part.entries}, (1, -1))], axis=0)" if bias else part.columns,
        part.weight.replace("NEW", f"COLUMNS[:{width}]"),
        part.bias.replace("NEW", f"reshape(COLUMNS[{width}:], (-1,))"),
    )  # fmt: skip


class _HeadCut(NamedTuple):
    """Expressions for a projection within a weight `w` and a bias `b`: columns [in, out] and entries; and for `w` and
    `b` with `NEW` in their places."""

    columns: str
    entries: str
    weight: str
    bias: str


def _part(model: Described, kind: str, at: int) -> _HeadCut:
    heads, head, width = model.size("N"), model.size("H"), model.size("D")
    if kind == _FUSED:
        total = heads * head
        cut = f"{at * total}:{(at + 1) * total}"
        rows = [f"w[:, :{at * total}]"] * (at > 0) + ["NEW"] + [f"w[:, {(at + 1) * total}:]"] * (at < 2)
        ends = [f"b[:{at * total}]"] * (at > 0) + ["NEW"] + [f"b[{(at + 1) * total}:]"] * (at < 2)
        return _HeadCut(f"w[:, {cut}]", f"b[{cut}]", f"concat([{', '.join(rows)}], axis=1)",
                     f"concat([{', '.join(ends)}], axis=0)")  # fmt: skip
    if kind == _BESIDE:
        weights, biases = f"reshape(w, ({heads}, 3, {head}, {width}))", f"reshape(b, ({heads}, 3, {head}))"
        new = f"reshape(transpose(NEW, (1, 0)), ({heads}, 1, {head}, {width}))"
        return _HeadCut(
            f"transpose(reshape({weights}[:, {at}:{at + 1}], (-1, {width})), (1, 0))",
            f"reshape({biases}[:, {at}:{at + 1}], (-1,))",
            f"reshape({_replace(weights, new, at)}, (-1, {width}))",
            f"reshape({_replace(biases, f'reshape(NEW, ({heads}, 1, {head}))', at)}, (-1,))",
        )
    return _HeadCut("transpose(w, (1, 0))", "b", "transpose(NEW, (1, 0))", "NEW")


def _replace(whole: str, new: str, at: int) -> str:
    """Three tensors beside each other along axis 1, with another one in a place."""
    parts = [f"{whole}[:, :{at}]"] * (at > 0) + [new] + [f"{whole}[:, {at + 1}:]"] * (at < 2)
    return f"concat([{', '.join(parts)}], axis=1)"
