"""A checkpoint as a caller sees it: its tensors by name, and the Flax modules that they fill."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax.tensors import Tensors


class Checkpoint(Tensors):
    """Names to arrays, in state-dict order. Opening reads headers; `checkpoint[name]` reads that tensor anew."""

    __slots__ = ()

    def to_nnx(
        self, model: Any, *, layout: str | None = None, config: Any = None, options: Any = None, cast: bool = False
    ) -> Any:
        """A Flax NNX module like `model`, an `nnx.Module` or what `nnx.eval_shape` makes of one, with these tensors.

        Names are matched along key paths; of random streams the module's own state stays. With `layout` these are
        Hugging Face names, and the model is in that layout, with or without the collection `params` at its top
        (`config`: the content or path of config.json, if it does not lie beside the checkpoint; `options`: those of
        the layout). `cast` lets dtypes differ.
        Raises PlanError with everything that is missing, not expected, or of another shape or dtype.
        """
        from brainsurgery_jax.interop import apply_layout, to_nnx

        found = apply_layout(self, "to_nnx", layout, config, options) if layout else self
        return to_nnx(found, model, cast=cast, lift=bool(layout))

    def to_linen(
        self,
        template: Any = None,
        *,
        layout: str | None = None,
        config: Any = None,
        options: Any = None,
        cast: bool = False,
    ) -> Any:
        """The variables of a Flax Linen module: nested dicts of jax Arrays, or the structure of `template`, which is
        checked. The other arguments are those of `to_nnx`."""
        from brainsurgery_jax.interop import apply_layout, to_linen

        found = apply_layout(self, "to_linen", layout, config, options) if layout else self
        return to_linen(found, template, cast=cast, lift=bool(layout))


def open(path: str) -> Checkpoint:
    """A lazy, immutable checkpoint: names, shapes and dtypes from its header; values when asked for."""
    return Checkpoint.open(path)


__all__ = ("Checkpoint", "open")
