"""The op that converts a whole checkpoint to another library's tree and back, by a declarative layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StrictBool

from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import control
from brainsurgery_jax.protocol import Edit, View


@dataclass(frozen=True)
class LayoutKeys(KeyGroup):
    """The layout, and how it is applied."""

    name: Annotated[Text, Field(description="a layout's name, or the path of a layout file")]
    inverse: Annotated[StrictBool, Field(description="back to Hugging Face names")] = False
    config: Annotated[dict[str, object] | Text | None, Field(description="path or content of config.json")] = None
    options: Annotated[dict[str, bool | int | str] | None, Field(description="options of the layout")] = None
    restore: Annotated[tuple[Text, ...] | None, Field(description="tied copies to make again, if `inverse`")] = None
    moments: Annotated[StrictBool, Field(description="carry an optimizer's mu and nu along")] = False
    alias: Text | None = None


@control(configures=True)
def layout(view: View, *, keys: LayoutKeys) -> Iterator[Edit]:
    """Rename, reshape and stack all tensors of an alias as another library expects them, or back.

    `brainsurgery-jax layouts` lists the layouts. Every tensor must be in the layout, with the shape that follows from
    config.json. With `moments`, trees below a `mu` or `nu` are converted by the same rules: what scales a weight scales
    its gradient by the inverse, what adds to it leaves its gradient alone; other leaves of `opt_state` and a `step`
    keep their names. Back to Hugging Face names, `config` becomes the config.json of a tree that came without one. The
    factors of a LoRA adapter are converted like the weights that they belong to.
    Example: `layout: {name: flax-gpt2, config: model/config.json}`
    """
    from brainsurgery_jax.ops._layouts import Direction, edits  # its language takes 30 ms to load, which few plans need

    direction = Direction(inverse=keys.inverse, moments=keys.moments, restore=keys.restore or ())
    yield from edits(view, keys.name, keys.config, keys.options or {}, keys.alias, direction)
