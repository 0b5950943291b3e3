"""Every built-in op, by family. Importing this package fills the registry; it loads neither JAX nor numpy."""

from brainsurgery_jax.ops import (
    asserts,
    compute,
    create,
    elementwise,
    layout,
    linalg,
    lowrank,
    merge,
    names,
    reduce,
    report,
    session,
    sets,
    shape,
    side_files,
    value_asserts,
)

__all__ = [
    "asserts",
    "compute",
    "create",
    "elementwise",
    "layout",
    "linalg",
    "lowrank",
    "merge",
    "names",
    "reduce",
    "report",
    "session",
    "sets",
    "shape",
    "side_files",
    "value_asserts",
]
