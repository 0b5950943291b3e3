"""Closed-form edits of matrices: facts, directions, Fisher information, pruning. What they need of data is given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.editing import ablation, consolidation
from brainsurgery_jax.editing import rebasin as matching
from brainsurgery_jax.editing import sparsegpt as sparse_gpt
from brainsurgery_jax.editing import wanda as wandas
from brainsurgery_jax.editing.arrays import anywhere, like_first
from brainsurgery_jax.editing.emmet import constrain_facts
from brainsurgery_jax.editing.facts import NOT_POSITIVE, check_facts, edit_facts, fact_space
from brainsurgery_jax.editing.memit import edit_matrix
from brainsurgery_jax.editing.rome import insert_fact
from brainsurgery_jax.editing.sparsity import PatternText, Share, read_sparsity
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import Avals, Form, Params, Pattern, Real, build, control, op
from brainsurgery_jax.ops.shape import axis_of
from brainsurgery_jax.protocol import Bind, Edit, TensorExpr, View
from brainsurgery_jax.select import Ref

IsTransposed = Annotated[StrictBool, Field(description="whether the matrix is [in, out], as in GPT-2")]
IsResidual = Annotated[StrictBool, Field(description="whether `values` are what is to be added to the outputs")]


def _edit(name: str, *others: str, optional: tuple[str, ...] = ()) -> Form:
    """An edit in place of what `target` matches, by other tensors."""
    reads = ("target", *others)
    return Form(name, reads, ("target",), "existing", pattern="target", slices=frozenset(reads),
                optional=frozenset(optional))  # fmt: skip


def _check_one(avals: Avals, params: Params) -> None:
    check_facts(avals, {"transposed": bool(params["transposed"])})
    if len(avals[1].shape) == 2 and avals[1].shape[0] != 1:
        hint = "Use `emmet_` or `memit_` for several facts, or give a single one: a slice such as `keys::[0]`."
        raise Refusal("shapes-differ", f"rome_ edits one fact, and there are {avals[1].shape[0]} keys", key="keys",
                      hint=hint)  # fmt: skip


@op(
    _edit("rome_", "keys", "values", "covariance", optional=("covariance",)),
    check=_check_one, result=like_first, host=anywhere, workspace=fact_space, guarded=True,
    refusal=f"the key is zero, {NOT_POSITIVE}, or a tensor holds NaN or infinity",
)  # fmt: skip
def rome(w: Array, *facts: Array, transposed: IsTransposed = False, residual: IsResidual = False) -> tuple[Array, Flag]:
    """Edit one fact (ROME): the matrix gives the value [out] for the key [in], and changes least for other keys.

    `W + (v - W k) (C^-1 k)^T / (k^T C^-1 k)`; `covariance` C [in, in] is that of the keys of other texts, without it
    the identity. Computed in float64, rounded once.
    Example: `rome_: {target: 'h\\.5\\.mlp\\.w', keys: key, values: value, covariance: C}`
    Reference: Meng et al., Locating and editing factual associations in GPT, 2022, https://arxiv.org/abs/2202.05262.
    """
    return edit_facts(insert_fact, (w, *facts), transposed=transposed, residual=residual)


@build(_edit("memit_", "keys", "values", "covariance"))
def memit(
    view: View,
    name: str,
    *given: TensorExpr,
    share: Real = 1.0,
    weight: Real = 1.0,
    transposed: IsTransposed = False,
    residual: IsResidual = False,
) -> TensorExpr:
    """Edit many facts at once (MEMIT), by least squares against what the covariance of other keys stands for.

    `W + s R K^T (weight C + K K^T)^-1`, `R` being `values - W keys`, or `values` themselves (`residual: true`); keys
    [n, in] and values [n, out] have a row for each fact. `share` s: 1 / (L - l + 1) for layer l of those up to L, where
    residuals are measured anew for each layer; 1 / layers, where they are measured once.
    Example: `memit_: {target: 'h\\.(\\d)\\.w', keys: 'k.\\1', values: v, covariance: 'c.\\1'}`
    Reference: Meng et al., Mass-editing memory in a transformer, 2022, https://arxiv.org/abs/2210.07229.
    """
    if weight < 0:
        hint = "Give a positive weight; the authors use 15000 with a mean of products."
        raise Refusal("value-type", f"the covariance has the weight {weight:g}, below zero", key="weight", hint=hint)
    return view.apply(edit_matrix, *given, share=share, weight=weight, transposed=transposed, residual=residual)


def _check_exact(avals: Avals, params: Params) -> None:
    check_facts(avals, {"transposed": bool(params["transposed"])})
    keys = avals[1].shape
    if len(keys) == 2 and keys[0] > keys[1]:
        found = f"emmet_ meets each fact exactly, and {keys[0]} keys of {keys[1]} entries depend on each other"
        hint = f"Use `memit_` for so many facts, or give up to {keys[1]}: a slice such as `keys::[:{keys[1]}]`."
        raise Refusal("shapes-differ", found, key="keys", hint=hint)


@op(
    _edit("emmet_", "keys", "values", "covariance", optional=("covariance",)),
    check=_check_exact, result=like_first, host=anywhere, workspace=fact_space, guarded=True,
    refusal=f"the keys depend on each other, {NOT_POSITIVE}, or a tensor holds NaN or infinity",
)  # fmt: skip
def emmet(
    w: Array, *facts: Array, transposed: IsTransposed = False, residual: IsResidual = False
) -> tuple[Array, Flag]:
    """Edit many facts at once (EMMET), each met exactly: ROME for several keys.

    `W + R (K^T C^-1 K)^-1 K^T C^-1`, `R` being `values - W keys`. Keys [n, in] must be independent beyond the rounding
    of their dtype; without `covariance` C is the identity.
    Example: `emmet_: {target: 'h\\.5\\.w', keys: keys, values: values, covariance: C}`
    Reference: Gupta et al., A unified framework for model editing, 2024, https://arxiv.org/abs/2403.14236.
    """
    return edit_facts(constrain_facts, (w, *facts), transposed=transposed, residual=residual)


# --- Directions -------------------------------------------------------------------------------------------------------


@build(_edit("ablate_", "direction"))
def ablate(
    view: View,
    name: str,
    w: TensorExpr,
    direction: TensorExpr,
    *,
    dim: Annotated[StrictInt, Field(description="axis along which the direction lies: 0 is what [out, in] writes")] = 0,
    strength: Real = 1.0,
) -> TensorExpr:
    """Remove a direction, or several: tensors are made orthogonal to them along an axis.

    `W - strength * r r^T W` for matrices [out, in] that write along r (`dim: 0`), `W - strength * W r r^T` for those
    that read (`dim: 1`) and for embeddings [vocab, width]. `direction` [width] or [n, width] is normalized, several are
    orthogonalized first; `strength: 2` reflects. Computed in float64 in parts, rounded once.
    Example: `ablate_: {target: '.*\\.(o_proj|down_proj)\\.weight', direction: r}`
    Reference: Arditi et al., Refusal in language models is mediated by a single direction, 2024,
    https://arxiv.org/abs/2406.11717.
    """
    axis = axis_of(dim, w.aval)
    if not w.aval.dtype.is_float:
        hint = "Narrow the pattern, or write `{name: PATTERN, kind: float}` for it."
        raise Refusal("dtype-unsupported", f"a direction is removed from floats, '{name}' is {w.aval}", key="target",
                      hint=hint, kinds=("float",))  # fmt: skip
    rows = view.apply(ablation.basis, direction)
    if rows.aval.shape[1] != w.aval.shape[axis]:
        found = f"'{name}' is {w.aval}, and the direction has {rows.aval.shape[1]} entries, not those of axis {dim}"
        raise Refusal("shapes-differ", found, key="direction", hint="Choose the axis of that width by `dim`.")
    return view.apply(ablation.project_out, w, rows, axis=axis, strength=strength)


# --- Fisher information -----------------------------------------------------------------------------------------------


@build(_edit("consolidate_", "old", "fisher", "own_fisher", optional=("own_fisher",)))
def consolidate(view: View, name: str, *given: TensorExpr, strength: Real = 1.0) -> TensorExpr:
    """Pull weights back to those of an old task where its Fisher information is large (EWC).

    `(G x + strength F old) / (G + strength F)`: the minimum of EWC's quadratic penalty beside the loss of the new task,
    whose curvature G is `own_fisher`, or 1. Computed in float64 in parts, rounded once.
    Example: `consolidate_: {target: 'tuned::(.*)', old: 'base::\\1', fisher: 'work::\\1', strength: 100}`
    Reference: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017,
    https://arxiv.org/abs/1612.00796.
    """
    return view.apply(consolidation.consolidate, *given, strength=strength)


# --- Pruning ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparsityKeys(KeyGroup):
    """How many weights go: one of these."""

    ratio: Share | None = None
    pattern: PatternText | None = None


@build(_edit("wanda_", "norms"))
def wanda(
    view: View,
    name: str,
    w: TensorExpr,
    norms: TensorExpr,
    *,
    share: SparsityKeys,
    transposed: IsTransposed = False,
) -> TensorExpr:
    """Prune by weights and activations (Wanda): in each output, the lowest `|W_ij| |X_j|` become zero.

    `norms` [in] are those of the inputs over some texts. `ratio: 0.5` removes that share of each output's weights
    (rounded down), `pattern: '2:4'` all but two of every four neighbours. Of equal scores the first is removed.
    Example: `wanda_: {target: '(.*)\\.weight', norms: '\\1.norms', pattern: '2:4'}`
    Reference: Sun et al., A simple and effective pruning approach for large language models, 2023,
    https://arxiv.org/abs/2306.11695.
    """
    return view.apply(wandas.prune, w, norms, sparsity=read_sparsity(share.ratio, share.pattern), transposed=transposed)


@build(_edit("sparsegpt_", "hessian"))
def sparsegpt(
    view: View,
    name: str,
    w: TensorExpr,
    hessian: TensorExpr,
    *,
    share: SparsityKeys,
    damping: Real = 0.01,
    transposed: IsTransposed = False,
) -> TensorExpr:
    """Prune and correct the weights that stay (SparseGPT), by the inner products of the inputs.

    `hessian` [in, in] is `X^T X` of the inputs X; `damping` times its mean diagonal is added. `ratio` is removed from
    every 128 columns, `pattern: '2:4'` as for `wanda_`. Computed in float64, rounded once.
    Example: `sparsegpt_: {target: '(.*)\\.weight', hessian: '\\1.hessian', ratio: 0.5}`
    Reference: Frantar and Alistarh, SparseGPT: Massive language models can be accurately pruned in one-shot, 2023,
    https://arxiv.org/abs/2301.00774.
    """
    sparsity = read_sparsity(share.ratio, share.pattern)
    return view.apply(
        sparse_gpt.prune_and_correct, w, hessian, sparsity=sparsity, transposed=transposed, damping=damping
    )


# --- Units ------------------------------------------------------------------------------------------------------------

Axis = Annotated[StrictInt, Field(description="axis along which the units of the tensors lie")]
Others = Annotated[
    Mapping[str, StrictInt], Field(description="templates of other tensors with these units, each with its axis")
]


@control()
def rebasin(
    view: View,
    *,
    target: Pattern,
    like: Annotated[Text, Field(description="alias of the model that stays as it is")],
    dim: Axis = 0,
    others: Others | None = None,
) -> Iterator[Edit]:
    """Reorder the hidden units of a model such that it is nearest to another (Git Re-Basin, matching by weights).

    `target` matches the first tensor of each set of units, `others` are templates of those with the same units; `like`
    has tensors of all these names. The permutation with the largest sum of inner products is exact. What the model
    computes stays the same if all tensors with these units are named: `up_proj`, `down_proj` and `gate_proj` of a gated
    MLP, and biases. Where sets share tensors (the layers of a plain network), give a step for each and repeat
    them: that is the coordinate descent of the paper.
    Example: `rebasin: {target: 'b::h\\.(\\d+)\\.up\\.w', like: a, others: {'h.\\1.down.w': 1}}`
    Reference: Ainsworth et al., Git Re-Basin, 2022, https://arxiv.org/abs/2209.04836.
    """
    if like == target.alias:
        hint = "Name the alias of the other model: `like` stays as it is."
        raise Refusal("value-type", f"'{like}' is the model whose units are reordered", key="like", hint=hint)
    axes = dict(others or {})
    templates = {f"others.{at}": Ref(target.alias, name) for at, name in enumerate(axes)}
    ordered: dict[tuple[str, int], str] = {}
    for number, (name, names) in enumerate(view.rename(target, templates, read=tuple(templates), written=())):
        sets = dict(zip((name, *names), (dim, *axes.values()), strict=True))
        if len(sets) <= len(names):
            twice = next(n for n in names if (name, *names).count(n) > 1)
            found = f"'{twice}' comes twice among the tensors with the units of '{name}'"
            raise Refusal("names-collide", found, key="others", hint="Give templates of other tensors.")
        own = {n: view.fetch(target.alias, n, "target" if n == name else "others") for n in sets}
        for n, axis in zip(own, _axes(own, sets), strict=True):
            if ordered.setdefault((n, axis), name) != name:
                found = f"the units of '{ordered[n, axis]}' and of '{name}' are both along axis {axis} of '{n}'"
                hint = "Give each set tensors of its own: a capture `(...)` in the pattern, `\\1` in the template."
                raise Refusal("names-collide", found, key="others", hint=hint)
        order = view.apply(matching.match_units, *_pairs(view, like, own, sets), axes=_axes(own, sets))
        if number == 0:
            _note_forgotten(view, target.alias, own, dim)
        for n, axis in zip(own, _axes(own, sets), strict=True):
            made = view.apply(matching.reorder, own[n], order, axis=axis)
            yield Bind(target.alias, n, made, "existing")


def _note_forgotten(view: View, alias: str, own: Mapping[str, TensorExpr], dim: int) -> None:
    """Note a tensor beside the first one that has its units, too, by names and shapes."""
    name, first = next(iter(own.items()))
    module, block, shape = name.rpartition(".")[0], name.rsplit(".", 2)[0], first.aval.shape
    unlike = len(shape) != 2 or module.count(".") == 0 or module.rpartition(".")[2].isdigit()
    if unlike or "att" in block.rpartition(".")[2]:
        return
    units, is_mlp = shape[axis_of(dim, first.aval)], re.search("mlp|ffn|feed_forward|expert", block) is not None
    for n in view.names(alias):
        if n in own or not n.startswith(f"{block}.") or n.count(".") != name.count("."):
            continue
        other = view.fetch(alias, n, "others").aval.shape
        of_weights = other in (shape, shape[::-1]) and (is_mlp or shape[0] != shape[1])
        if of_weights or (other == (units,) and n.startswith(f"{module}.")):
            message = f"'{n}' seems to have the units of '{name}', and keeps their order: the model computes otherwise"
            view.note("unmatched", message, "others", "Give a template for it in `others`, with the axis of its units.")
            return


def _axes(own: Mapping[str, TensorExpr], sets: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(axis_of(axis, own[name].aval) for name, axis in sets.items())


def _pairs(view: View, like: str, own: Mapping[str, TensorExpr], sets: Mapping[str, int]) -> Iterator[TensorExpr]:
    """Each tensor of the other model, then that of the target. Raises Refusal."""
    units = None
    for (name, x), axis in zip(own.items(), _axes(own, sets), strict=True):
        other = view.fetch(like, name, "like")
        if other.aval.shape != x.aval.shape:
            found = f"'{name}' is {other.aval} in '{like}', here {x.aval}"
            raise Refusal("shapes-differ", found, key="like", hint="Only models of one architecture are matched.")
        if not (x.aval.dtype.is_float and other.aval.dtype.is_float):
            found = f"units are matched by floats, '{name}' is {x.aval}"
            raise Refusal("dtype-unsupported", found, key="target", hint="Narrow the pattern.", kinds=("float",))
        size = x.aval.shape[axis]
        if size != (units or size):
            found = f"'{name}' has {size} units along axis {axis}, and '{next(iter(own))}' has {units}"
            raise Refusal("shapes-differ", found, key="others", hint="Give for each template the axis of the units.")
        units = size
        yield from (other, x)
