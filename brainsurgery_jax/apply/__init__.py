"""A plan as a pure function of pytrees: concrete, abstract, or inside `jax.jit`, `grad`, `vmap` and `scan`.

Leaves are named by their key paths, joined with dots (`layers.0.kernel`); the segment that a Flax variable adds for its
value is left out. Leaves that are no arrays pass through. Three kinds of call are told apart by the leaves:

- *Concrete* arrays: untouched leaves come back as the same objects, and are not looked at. What is computed comes back
  as jax Arrays, float64 ones too, whatever the caller's x64 flag. Of numpy arrays, and of arrays on one CPU device,
  every step runs as in `run`, bit for bit. Arrays on accelerators, on several devices or in pinned memory are computed
  where they live, within rounding of `run`; nothing of them is fetched but scalars, and values for a report or for the
  message of a failed assert. A result has the sharding of the leaf that it replaces if shapes agree, else that of its
  operands by the rule in `axes.py`; arrays may span processes. Inputs that are not given as trees are read from their
  paths.
- *Abstract* leaves (`jax.ShapeDtypeStruct`) anywhere: only shapes, dtypes and header asserts are checked; computed
  leaves come back abstract, asserts on values are not decided.
- *Traced* leaves anywhere: shapes, dtypes and header asserts are checked at trace time, and files are not read. Steps
  agree with `run` within rounding, since XLA may fuse them. A float64 result becomes float32 at the caller's next
  operation, or when it leaves their `jit`, if their x64 flag is off. `grad` keeps 64-bit types in
  any configuration (`gradients.py`); forward mode (`jax.jvp`) of a product or a gather of float64 needs theirs.

Outputs and `save` steps are not executed. The reports of `dump` and `diff` go to `listen` as documents: under a trace
at trace time, and only those that need no values. Without `listen` their text goes to the logger `brainsurgery_jax`,
and so to stderr unless the program configures logging.

`checks` says what happens to asserts on values. `"raise"`: a failing one raises PlanError; under a trace, where nothing
can be raised, a plan that has any is refused. `"skip"`: they are left out. `"return"`: the result is
`(tree, {label: verdict})`, verdicts being boolean scalars and labels such as `step 3: assert.iszero (plan.yaml:12)`, a
repeated one followed by ` #2`. The same goes for kernels that may refuse values (`step 2: phlora`: a matrix with NaN);
outside a trace these always raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any, Literal

from brainsurgery_jax._lazy import jax, jnp
from brainsurgery_jax.apply.concrete import concrete
from brainsurgery_jax.apply.filling import EXACT, Filling, checked
from brainsurgery_jax.apply.listening import log
from brainsurgery_jax.apply.lowering import Loaded, Trees, lower_onto
from brainsurgery_jax.apply.names import name_leaves
from brainsurgery_jax.apply.result import rebuild
from brainsurgery_jax.apply.traced import abstract, trace
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.lower.kinds import literal_hints
from brainsurgery_jax.plan.model import PlanData

Checks = Literal["raise", "return", "skip"]


def apply(
    plan: Loaded,
    tree: object = None,
    *,
    like: object = None,
    checks: Checks = "raise",
    trees: Mapping[str, object] | None = None,
    donate: bool = False,
    filling: Filling = EXACT,
) -> Any:
    """The tree that a plan makes of trees.

    **Arguments**: `tree` is bound to the plan's only or first input (alias `model` for a plan without inputs), `trees`
    to inputs by alias. `like`: a pytree whose structure the result takes, its leaves found by name. `donate`:
    concrete arrays of the trees may be overwritten, and those that do not come back are deleted. `filling`: what
    becomes of leaves of `like` that the plan does not make, and of what it makes beside them; its listener gets the
    report of each step that has one, too.
    **Returns** the tree of the alias that the plan's (first) output would write: in the structure of the tree that
    came in if the names are still the same (or of `like`), else as dicts along the dots of the names, with the lists,
    tuples and empty nodes that came in where they are by now. A flat dict with dotted keys stays flat.
    **Raises** PlanError for a mistake in the plan or a failed assert, StoreError for a file that cannot be read.
    """
    if checks not in ("raise", "return", "skip"):
        raise ValueError(f"checks: expected 'raise', 'return' or 'skip', got {checks!r}")
    filling = checked(filling)
    given = {alias: name_leaves(alias, t) for alias, t in _bind_trees(plan.data, tree, trees or {}).items()}
    leaves = [leaf for n in given.values() for leaf in n.tensors.values()]
    is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    narrow = jnp.result_type(float).itemsize < 8
    with closing(Trees(given, readable=not is_traced)) as world, jax.enable_x64(True):
        compute = partial(concrete, donate=donate, held=jax.tree_util.tree_leaves(like))
        evaluate = partial(trace, narrow=narrow) if is_traced else abstract if is_abstract else compute
        applied = lower_onto(plan, given, world, values=evaluate is compute)
        with literal_hints(applied.state.effects, applied.state.default_alias):
            values, verdicts = evaluate(applied, checks, filling.listen or log)
    result = rebuild(values, given.get(applied.alias), like, filling, applied)
    return (result, verdicts) if checks == "return" else result


def _bind_trees(plan: PlanData, tree: object, trees: Mapping[str, object]) -> dict[str, object]:
    """Trees by alias, the positional one first."""
    inputs = [i.alias for i in plan.inputs]
    first = inputs[0] if inputs else "model"
    if tree is not None and first in trees:
        raise TypeError(f"the input '{first}' is given twice: by position and by name")
    unknown = [a for a in trees if inputs and a not in inputs]
    if unknown:
        near = did_you_mean(unknown[0], inputs)
        hint = f"Inputs of the plan: {', '.join(inputs)}."
        raise PlanError([Diagnostic("alias-unknown", f"the plan has no input '{unknown[0]}'.{near}", hint=hint)])
    return ({} if tree is None else {first: tree}) | dict(trees)


__all__ = ("apply",)
