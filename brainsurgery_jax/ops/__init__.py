"""Every built-in op, by family. Importing this package fills the registry; it loads neither JAX nor numpy."""

from brainsurgery_jax.ops import asserts, create, elementwise, layout, linalg, lowrank, names, report, shape

__all__ = ["asserts", "create", "elementwise", "layout", "linalg", "lowrank", "names", "report", "shape"]
