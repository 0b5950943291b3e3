"""What every op does under `jax.jit`, `jax.vmap` and `jax.grad`: all of it, unless a row below says otherwise.

The rows are tests (`test_modes.py`) and a table of the documentation (`docs/ops.md`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["jit", "vmap", "grad"]
MODES: tuple[Mode, ...] = ("jit", "vmap", "grad")
MESH_MODES = ("concrete", "jit", "vmap", "grad", "shard_map")
"""How every op is tried on a mesh of 8 devices (`test_meshes.py`), with Auto and with Explicit axes."""


class Limit(NamedTuple):
    """What an op needs or lacks in some modes, and the words by which it says so.

    `ops`: rows of the table of ops (`diff-values`), with a star all of an op.
    `kinds`: what it is about: "f" floats, "i" integers, "l" only int64, "d" float64 in JAX's default configuration.
    `lifted`: giving `checks="skip"` or `"return"` lifts it.
    """

    ops: tuple[str, ...]
    modes: tuple[Mode, ...]
    why: str
    match: str
    kinds: tuple[str, ...] = ("f", "i")
    lifted: bool = False


CHECKS = "cannot stop a traced function for values that it refuses"

LIMITS: tuple[Limit, ...] = (
    Limit(
        ("phlora*", "phlora_*", "lora_resize"), MODES, "may refuse values (NaN, infinity): needs `checks=`",
        f"(factors|truncated|refactor): {CHECKS}", ("f",), lifted=True,
    ),
    Limit(
        ("refactor", "refactor_attention*"), ("jit", "vmap"), "may refuse values (NaN, infinity): needs `checks=`",
        f"(refactor|rebase): {CHECKS}", ("f",), lifted=True,
    ),
    Limit(
        ("refactor", "refactor_attention*"), ("grad",),
        "may refuse values (NaN, infinity): needs `checks=`; NaN where singular values of a product are zero or equal",
        f"(refactor|rebase): {CHECKS}", ("f",), lifted=True,
    ),
    Limit(("expert_ranks",), MODES, "may refuse values (NaN, infinity): needs `checks=`", f"truncated: {CHECKS}",
          ("f",), lifted=True),
    Limit(("expert_ranks",), MODES, "low ranks are of floats", "Cast them to one floating dtype", ("i",)),
    Limit(
        ("keep_largest", "keep_largest_"), MODES, "scores may be NaN or infinite: needs `checks=`",
        f"keep_largest: {CHECKS}", ("f",), lifted=True,
    ),
    Limit(
        ("cast_",), MODES, "values may not fit an integer dtype: needs `checks=` or `overflow: saturate`",
        f"cast: {CHECKS}", ("f", "l"), lifted=True,
    ),
    Limit(
        ("scale", "scale_", "divide", "divide_"), ("jit", "vmap"), "integers may have no exact result: needs `checks=`",
        f"(scale|divide): {CHECKS}", ("i",), lifted=True,
    ),
    Limit(("quantize*",), MODES, "may refuse values (NaN, infinity): needs `checks=`", f"quantize: {CHECKS}", ("f",),
          lifted=True),
    Limit(
        ("rome_", "memit_", "emmet_", "ablate_", "consolidate_", "wanda_", "sparsegpt_"), MODES,
        "may refuse values (NaN, singular matrices): needs `checks=`",
        f"(rome|memit|emmet|ablate|consolidate|wanda|sparsegpt): {CHECKS}", ("f",), lifted=True,
    ),
    Limit(("tie",), MODES, "head and table must be equal: needs `checks=`", "an assert on values cannot", lifted=True),
    Limit(("rebasin",), MODES, "may refuse values (NaN, infinity): needs `checks=`", f"rebasin: {CHECKS}", ("f",),
          lifted=True),
    Limit(("dump", "diff-values"), MODES, "values cannot be printed", "cannot print values while JAX traces"),
    Limit(("reduce",), ("jit", "vmap"), "a sum of integers may not fit: needs `checks=`", f"reduce: {CHECKS}",
          ("i",), lifted=True),
    Limit(
        tuple(f"compute-{name}" for name in ("solve", "inv", "qr", "svd", "eigh")), MODES,
        "may refuse matrices (singular, NaN, infinity): needs `checks=`", f"(compute|whole): {CHECKS}", ("f",),
        lifted=True,
    ),
    Limit(("cast_",), ("grad",), "integers have no gradient", "grad requires real-valued outputs", ("f",)),
)  # fmt: skip


KINDS = {"f": "floats", "i": "integers", "l": "int64", "d": "float64 in JAX's default configuration"}
_WIDER = {"d": "f", "l": "i"}


def limit_of(row: str, mode: str, kind: str, *, checks: bool) -> Limit | None:
    """What stands in the way of a row on tensors of a kind; `checks`: `checks="skip"` is given."""
    known = (
        limit
        for limit in LIMITS
        if {row, row.partition("-")[0] + "*"} & {*limit.ops}
        and (mode if mode != "shard_map" else "jit") in limit.modes
        and {kind, _WIDER.get(kind, kind)} & {*limit.kinds}
        and not (checks and limit.lifted)
    )
    return next(known, None)
