"""A checkpoint as a caller sees it: its tensors by name, and the Flax modules that they fill."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal, TypedDict, Unpack

from brainsurgery_jax.documents import Document
from brainsurgery_jax.tensors import Tensors


class FillingKeywords(TypedDict, total=False):
    """What becomes of leaves and tensors without a partner, and who is told what was taken."""

    missing: Literal["error", "keep"]
    extra: Literal["error", "ignore"]
    listen: Callable[[Document], None] | None


class Checkpoint(Tensors):
    """Names to arrays, in state-dict order. Opening reads headers; `checkpoint[name]` reads that tensor anew."""

    __slots__ = ()

    def to_nnx(
        self,
        model: Any,
        *,
        layout: str | None = None,
        config: Any = None,
        options: Any = None,
        cast: bool = False,
        **filling: Unpack[FillingKeywords],
    ) -> Any:
        """Fill a Flax NNX module with these tensors. Names are matched along key paths.

        **Arguments**: `model` is an `nnx.Module`, or what `nnx.eval_shape` returns for one. With `layout`, the names of
        the checkpoint are those of Hugging Face, and the model is in that layout, with or without the collection
        `params` at its top; `config` is the content or path of config.json, if it is not beside the checkpoint, and
        `options` are those of the layout. `cast` lets dtypes differ. `missing="keep"` keeps leaves for which there is
        no tensor, `extra="ignore"` leaves out tensors for which there is no leaf; both are logged, and `listen` gets
        the list of what was taken. Streams of random numbers are passed over.
        **Returns** a module like `model`; its random streams keep their own state.
        **Raises** PlanError with everything that is missing, not expected, or of another shape or dtype.
        **Example**:

        >>> from flax import nnx
        >>> model = bs.open("linear.safetensors").to_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> model.bias[...]
        Array([0., 1., 2.], dtype=float32)
        """
        from brainsurgery_jax.interop import Filling, apply_layout, to_nnx

        found = apply_layout(self, "to_nnx", layout, config, options) if layout else self
        return to_nnx(found, model, cast=cast, lift=bool(layout), filling=Filling(**filling))

    def to_linen(
        self,
        template: Any = None,
        *,
        layout: str | None = None,
        config: Any = None,
        options: Any = None,
        cast: bool = False,
        **filling: Unpack[FillingKeywords],
    ) -> Any:
        """Read these tensors as the variables of a Flax Linen module.

        **Arguments**: `template`: variables whose names, shapes and dtypes must be found. The other arguments are those
        of `to_nnx`.
        **Returns** nested dicts of JAX arrays, or the structure of `template`.
        **Raises** PlanError with every difference from `template`.
        **Example**:

        >>> bs.open("linear.safetensors").to_linen()["bias"]
        Array([0., 1., 2.], dtype=float32)
        """
        from brainsurgery_jax.interop import Filling, apply_layout, to_linen

        found = apply_layout(self, "to_linen", layout, config, options) if layout else self
        return to_linen(found, template, cast=cast, lift=bool(layout), filling=Filling(**filling))


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any format. Only its headers are read; a tensor is read when it is looked up.

    **Arguments**: the path of a file or a folder, or a part of one: `PATH::PART`.
    **Returns** a `Checkpoint`: a lazy, immutable mapping from names to numpy arrays.
    **Raises** StoreError for what cannot be read.
    **Example**:

    >>> checkpoint = bs.open("model.safetensors")
    >>> list(checkpoint)
    ['bias', 'layers.0.w', 'layers.1.w']
    >>> checkpoint["bias"]
    array([0., 1., 2., 3.], dtype=float32)
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"open takes a path, got a {type(path).__name__}. A tree is saved first: bs.save(path, tree).")
    return Checkpoint.open(os.fspath(path))


__all__ = ("Checkpoint", "open")


def open_side(side: str | os.PathLike[str] | Checkpoint, opened: ExitStack, call: str) -> Checkpoint:
    """What a call was given: a checkpoint as it is, a path opened until `opened` closes. Raises TypeError for trees."""
    if isinstance(side, Checkpoint):
        return side
    if not isinstance(side, str | os.PathLike):
        raise TypeError(
            f"{call} takes paths or what `bs.open` returns, got a {type(side).__name__}. "
            "Save a tree first: bs.save('tree.safetensors', tree)."
        )
    checkpoint = Checkpoint.open(os.fspath(side))
    opened.callback(checkpoint.source.close)
    return checkpoint
