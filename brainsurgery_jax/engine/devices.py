"""Whether there is an accelerator to compute on, and whose turn it is there."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from threading import Lock

from brainsurgery_jax._lazy import jax

_PLUGINS = "jax_plugins", "libtpu"
"""Packages by which JAX reaches anything but the CPU; without them there is no need to import it and ask."""

turn = Lock()
"""Held while a compiled call on whole operands runs. One at a time may have the device's memory, while other threads
read and write."""


@cache
def accelerated() -> bool:
    """Whether JAX's default device is not a CPU."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(find_spec(name) for name in _PLUGINS):
        return False
    return jax.default_backend() != "cpu"
