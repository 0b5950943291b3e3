"""Names the packages: those found under `brainsurgery_jax`, and `converters/`, `plans/` and a page of `docs/` under
their installed names.

All else is in pyproject.toml, which can either find packages or list them, but not find some and add one.
"""

from setuptools import find_packages, setup

OTHERS = ["brainsurgery_jax.converters", "brainsurgery_jax.recipes", "brainsurgery_jax.pages"]

setup(packages=[*find_packages(include=["brainsurgery_jax", "brainsurgery_jax.*"]), *OTHERS])
