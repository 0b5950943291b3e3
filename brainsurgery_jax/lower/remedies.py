"""Remedies that depend on who reads them and on what stands beside a tensor: a conversion has options, no steps, and
codes are not cast."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.codes import find_codes, fits
from brainsurgery_jax.errors import StoreError, is_converting, worded
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.plan.source import flow_yaml


def storing_hint(bad: StoreError, tensors: Mapping[str, Expr], alias: str) -> str:
    """The remedy for a tensor that a format cannot hold: where it would be to cast codes, to make floats of them."""
    if not bad.castable or bad.tensor is None or bad.tensor not in tensors:
        return bad.remedy
    codes = find_codes(bad.tensor, tensors.__contains__)
    coded = codes is not None and fits(codes, tensors[bad.tensor].aval.dtype)
    if is_converting():
        option = "dequantize" if coded else "dtype"
        how = worded(shell=f"`--{option} bfloat16`", python=f"`{option}='bfloat16'`")
        return f"Write safetensors, or floats of 16 bits: {how}."
    if not coded:
        return bad.remedy
    step = flow_yaml({"dequantize": {"target": f"{alias}::.*" if alias else ".*", "to": "bfloat16"}})[1:-1]
    return f"Write safetensors, or make floats of codes first: `{step}`."
