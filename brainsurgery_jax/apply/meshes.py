"""Calls on arrays whose axes of a mesh are explicit: JAX would ask where results go, and `axes` tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from brainsurgery_jax._lazy import AbstractMesh, Array, Mesh, NamedSharding, jax, jnp
from brainsurgery_jax.apply.axes import Spec, specs_of_results
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr

T = TypeVar("T")
Function = Callable[..., Any]

MANUAL = (
    "Name all axes of the mesh in `shard_map`, make the others Auto (`jax.make_mesh(..., axis_types=...)`), or apply "
    "the plan outside of `shard_map`."
)


def explicit_mesh(arrays: Sequence[Array]) -> AbstractMesh | None:
    """The abstract mesh of the first array that is cut along explicit axes, as far as its type tells; else None."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def spec_of(sharding: NamedSharding, rank: int) -> Spec:
    """The mesh axes of each axis of an array with this named sharding."""
    entries = [*sharding.spec, *(None for _ in range(rank - len(sharding.spec)))]
    return tuple((names,) if isinstance(names, str) else tuple(names or ()) for names in entries)


def sharding_of(mesh: Mesh | AbstractMesh, spec: Spec) -> NamedSharding:
    """A spec on a mesh, as JAX has it."""
    entries = (names[0] if len(names) == 1 else names or None for names in spec)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*entries))


def shardings_of_results(
    e: Expr, shardings: Sequence[NamedSharding | None], mesh: Mesh | AbstractMesh
) -> list[NamedSharding]:
    """The sharding of each result of a call, by the rule of `axes`."""
    specs = [
        spec_of(s, len(x.aval.shape)) if s is not None else ((),) * len(x.aval.shape)
        for x, s in zip(e.srcs, shardings, strict=True)
    ]
    return [sharding_of(mesh, spec) for spec in specs_of_results(e, specs, dict(mesh.shape))]


def tree_of_results(e: Expr, results: Sequence[T], rest: object) -> object:
    """What belongs to each result, in the structure in which the kernel of `e` returns them; `rest` for its guard."""
    assert e.kernel is not None
    value = tuple(results) if len(e.avals) > 1 else results[0]
    return (value, rest) if e.kernel.guarded else value


def call_traced(e: Expr, function: Function, operands: Sequence[Array], numbers: Mapping[str, object]) -> Any:
    """`function(operands, numbers)`, which computes the call `e`; with explicit axes its results are cut by the rule.

    Raises PlanError where some axes of the mesh are explicit and others are manual, which JAX cannot mix.
    """
    mesh = explicit_mesh(operands)
    if mesh is None:
        return function(operands, numbers)
    shardings = [jax.typeof(x).sharding for x in operands]
    assert e.kernel is not None
    if e.kernel.elementwise and len({s.spec for s in shardings}) == 1:
        return function(operands, numbers)
    if mesh.manual_axes:
        raise PlanError([_mix(e, mesh)])
    results = shardings_of_results(e, shardings, mesh)
    places = tree_of_results(e, results, sharding_of(mesh, ()))
    return jax.sharding.auto_axes(lambda *xs: function(list(xs), numbers), out_sharding=places)(*operands)


def ask_traced(function: Function, arrays: Sequence[Array]) -> Any:
    """A scalar of some arrays, whatever their axes."""
    mesh = explicit_mesh(arrays)
    if mesh is None or mesh.manual_axes:
        return function(*arrays)
    return jax.sharding.auto_axes(function, out_sharding=sharding_of(mesh, ()))(*arrays)


def place_as(value: Any, old: Any) -> Any:
    """A value cut along explicit axes as the leaf that it replaces is, where shapes agree."""
    if old is None or (mesh := explicit_mesh([old])) is None or mesh.manual_axes or old.shape != value.shape:
        return value
    wanted = jax.typeof(old).sharding
    adrift = jax.typeof(value).sharding.mesh.empty and jax.sharding.get_abstract_mesh().empty
    placed = value if jax.typeof(value).sharding == wanted else jax.sharding.reshard(value, wanted)
    return _tie(placed, old) if adrift else placed


def _tie(value: Any, old: Any) -> Any:
    """A value made from nothing that depends on `old`, as its gradient does: so JAX learns on which devices both are.

    No barrier alone does: where a gradient is zero, nothing of `old` would be left in the function that computes it.
    """
    never, _ = jax.lax.optimization_barrier((jnp.asarray(False), old))
    return jnp.where(never, old.astype(value.dtype), value)


def _mix(e: Expr, mesh: AbstractMesh) -> Diagnostic:
    assert e.kernel is not None
    manual, explicit = (", ".join(map(repr, names)) for names in (mesh.manual_axes, mesh.explicit_axes))
    text = f"{e.kernel.name}: the mesh has manual axes ({manual}) and explicit ones ({explicit}), which JAX cannot mix"
    return Diagnostic("apply-devices", text, e.span, MANUAL)
