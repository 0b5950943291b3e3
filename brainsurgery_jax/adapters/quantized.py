"""Models whose weights are quantized: an adapter is made of floats, and added to floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.ops._quantization import find_quantized
from brainsurgery_jax.protocol import View


def refuse_quantized(view: View, names: Mapping[str, Sequence[str]], key: str, otherwise: str = "") -> None:
    """Refuse codes among the tensors of these names, by alias. `otherwise`: what else may be done."""
    found = {alias: next(find_quantized(view, alias, own), None) for alias, own in names.items()}
    codes = {alias: first for alias, first in found.items() if first is not None}
    if codes:
        alias, first = next(iter(codes.items()))
        aval = view.fetch(alias, first.name, key).aval
        message = f"'{alias}::{first.name}' holds codes, {aval}, whose scales are in '{first.scales}'"
        steps = " and ".join(f"`dequantize: {{target: '{each}::.*', to: float32}}`" for each in codes)
        raise Refusal("scale-ignored", f"{message}: an adapter belongs to floats", key=key,
                      hint=f"Make floats of it before: {steps}.{otherwise}")  # fmt: skip
