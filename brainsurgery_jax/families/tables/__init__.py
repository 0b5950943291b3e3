"""The tables: one file for each family of models, or for classes that share the names of one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from brainsurgery_jax.families.model import Family, ModelType

_FILES = [vars(import_module(f"{__name__}.{found.name}")) for found in iter_modules(__path__)]

FAMILIES: tuple[Family, ...] = tuple(
    dict.fromkeys(each for file in _FILES for each in file.values() if isinstance(each, Family))
)
"""Every family that a file here defines."""

MODELS: Mapping[str, ModelType] = {model.name: model for file in _FILES for model in file.get("MODELS", ())}
"""What is known of each `model_type`: all that the files here list as `MODELS`."""
