"""JAX and numpy for modules that must load without them: the import happens at the first attribute, not before.

Plans are parsed, checked from headers and copied as bytes without JAX. Op modules therefore take `jnp`, `np`, `jax` and
the jaxtyping names from here (with `from __future__ import annotations`, so that annotations stay text).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax as jax
    import jax.core
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx as nnx
    from jax.sharding import AbstractMesh as AbstractMesh
    from jax.sharding import Mesh as Mesh
    from jax.sharding import NamedSharding as NamedSharding
    from jax.sharding import Sharding as Sharding
    from jaxtyping import Float as Float
    from jaxtyping import Inexact as Inexact
    from jaxtyping import Num as Num
    from jaxtyping import Shaped as Shaped

    # What kernels compute on: numpy's arrays on the host, else JAX's, traced ones too. `on_host` tells them apart.
    Array = np.ndarray | jax.Array
    Flag = bool | np.bool_ | Array
else:

    class LazyModule:
        """A module that is imported when something is first asked of it."""

        def __init__(self, name: str):
            self.__name = name
            self.__module = None  # kept once it is imported: kernels ask for functions by the thousand

        def __getattr__(self, attribute: str) -> Any:
            if self.__module is None:
                # The package first: if another thread imports it, each would wait for a module of the other, and Python
                # would then give one of them an unfinished one.
                import_module(self.__name.partition(".")[0])
                self.__module = import_module(self.__name)
            return getattr(self.__module, attribute)

    class LazyNumpy(LazyModule):
        """numpy, what was asked of it once kept: kernels ask for the same few functions by the thousand."""

        def __getattr__(self, attribute: str) -> Any:
            found = self.__dict__[attribute] = super().__getattr__(attribute)
            return found

    class LazyType:
        """A jaxtyping dtype class, `Float["m n"]`, looked up when a type checker subscripts it."""

        def __init__(self, name: str):
            self.__name = name

        def __getitem__(self, item: Any) -> Any:
            _, shape = item
            jaxtyping = import_module("jaxtyping")
            # Kernels run on arrays, tracers and the abstract values of `eval_shape`: shape and dtype are what matters.
            return getattr(jaxtyping, self.__name)[Any, shape]

    jax, jnp, np = LazyModule("jax"), LazyModule("jax.numpy"), LazyNumpy("numpy")
    nnx = LazyModule("flax.nnx")
    Float, Inexact, Num, Shaped = (LazyType(n) for n in ("Float", "Inexact", "Num", "Shaped"))
    Array = Flag = AbstractMesh = Mesh = NamedSharding = Sharding = object  # names of types in annotations
