"""Layouts between model families, installed as `brainsurgery_jax.converters`; they arrive with a later release."""
