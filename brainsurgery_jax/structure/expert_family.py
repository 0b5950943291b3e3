"""How a class that is not known names its experts: what a step has to say of them, as tensors and config.json show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.structure.described import Described

_OF_EXPERTS = re.compile(r"\.(experts|router|block_sparse_moe)\.")
"""Where experts or what chooses them are."""
_PARTS = ("gate", "up", "down")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
"""Keys of how many experts a token takes."""


def refuse_strange_experts(model: Described) -> Refusal:
    """The error about a model of whose class no experts are known: it has none, or what a step has to say of them."""
    inside = next((starred for starred in model.kin if _OF_EXPERTS.search(starred)), None)
    if inside is None:
        message = f"'{model.alias}' has no experts, as far as its type is known"
        hint = "Put `- upcycle: {experts: 8}` before this step, which makes experts of the MLP of a dense model."
        return Refusal("structure-experts", message, key="alias", hint=hint)
    message = f"how experts of the model_type {model.place.kind} are named is not known, such as '{inside}'"
    if (family := _find_family(model)) is None:
        return Refusal("structure-experts", message, key="alias", hint="Say it in the step, by its key `family`.")
    told = json.dumps(family)
    return Refusal("structure-experts", message, key="alias", hint=f"Say it in the step: `family: {told}`.")


def _find_family(model: Described) -> dict[str, object] | None:
    """The key `family`; None if names or config.json do not show what it needs."""
    layer = f"{model.layered()}*"
    found = re.compile(rf"{re.escape(layer)}\.(.+)\.experts\.\*\.((?:gate|up|down)_proj)\.weight")
    places = {match for starred in model.kin if (match := found.fullmatch(starred))}
    blocks = {match[1] for match in places}
    if len(blocks) != 1 or len(places) != len(_PARTS):
        return None
    (block,) = blocks
    count = len({numbers[-1] for numbers in model.kin[next(iter(places)).string].numbers})
    shapes = dict(_entries(model, f"{layer}.{block}.", count))
    routers = [name for name, axes in shapes.items() if axes == ["E", "_"] and name.endswith(".weight")]
    dims = _find_dims(model, count)
    if len(routers) != 1 or dims is None:
        return None
    experts = {f"expert.*.{part}": f"{block}.experts.*.{part}_proj" for part in _PARTS}
    router = routers[0].removeprefix(f"{layer}.").removesuffix(".weight")
    return {"layers": layer, "dims": dims, "roles": {"router": router, **experts}, "shapes": shapes}


def _entries(model: Described, block: str, count: int) -> Iterator[tuple[str, list[str]]]:
    """The tensors of a block that have an entry for each expert, and their axes."""
    for starred, kin in model.kin.items():
        shape = next(iter(kin.first)).shape
        if starred.startswith(block) and not starred.startswith(f"{block}experts.") and shape.count(count) == 1:
            yield starred, ["E" if n == count else "_" for n in shape]


def _find_dims(model: Described, count: int) -> dict[str, str] | None:
    """The keys of config.json that count layers, experts, and those that a token takes; None if one is not there."""
    config = model.place.config
    counted = [key for key, n in config.items() if "experts" in key and n == count and key not in _CHOSEN]
    layers = model.place.family.dims[next(iter(model.stacks.values()))]
    own = [key for key in layers if key in config]
    taken = [key for key in _CHOSEN if key in config]
    if len(counted) != 1 or not own or not taken:
        return None
    return {"L": own[0], "E": counted[0], "T": taken[0]}
