"""Names the packages: those found under `brainsurgery_jax`, and `converters/` under its installed name.

All else is in pyproject.toml, which can either find packages or list them, but not find some and add one.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["brainsurgery_jax", "brainsurgery_jax.*"]), "brainsurgery_jax.converters"])
