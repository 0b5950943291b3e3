"""What config.json says after a change of structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.evidence import keys_of, sizes_of
from brainsurgery_jax.families.model import LISTS, ModelType
from brainsurgery_jax.families.presence import identity
from brainsurgery_jax.families.solve import pin
from brainsurgery_jax.layout.expressions import Config
from brainsurgery_jax.structure.described import Described


def set_dims(model: Described, values: Mapping[str, int]) -> dict[str, object]:
    """The patch that gives dims of a model other values, and keeps all others."""
    family, config = model.place.family, model.place.config
    made: dict[str, int] = {}
    for dim, value in values.items():
        now = {**config, **made}
        if sizes_of(family, now).values[dim] == value:
            continue
        keys = keys_of(family, dim, now)
        if not keys and family.is_given:
            continue  # a number, or a formula that no single key changes
        alone = [key for key in keys if not (_move(model, now, {key: value}, dim) & model.dims) - set(values)]
        key = (alone or keys)[0]
        made |= {key: value, **pin(family, now, {key: value}, dim, model.dims)}
    return model.place.patch(made)


def _move(model: Described, config: Config, patch: Mapping[str, int], dim: str) -> set[str]:
    """The other dims that a patch changes."""
    before, after = (sizes_of(model.place.family, c).values for c in (config, {**config, **patch}))
    return {other for other in before if other != dim and before[other] != after[other]}


def renumber(model: Described, stack: str, sources: Sequence[int | None]) -> dict[str, object]:
    """The patch for layers that come from these: their number, and what config.json lists for each. None: a layer of
    another model, which is taken to be of the kind of that in its place."""
    config, kind = model.place.config, model.kind
    dim = model.stacks[stack or next(iter(model.stacks))]
    count = model.size(dim)
    order = [min(at, count - 1) if source is None else source for at, source in enumerate(sources)]
    made = set_dims(model, {dim: len(order)})
    if dim != next(iter(model.stacks.values())):
        return made
    own: dict[str, object] = {}
    for key in LISTS:
        if isinstance(listed := config.get(key), list) and len(listed) == count:
            own[key] = [listed[layer] for layer in order]
    own |= _number(kind, config, order)
    if kind is not None:
        own |= _types(kind, config, order, own)
    changed = {key: value for key, value in own.items() if value != config.get(key)}
    inner = made[model.place.part] if model.place.part else made
    assert isinstance(inner, Mapping)
    return model.place.patch({**inner, **changed})


def _types(kind: ModelType, config: Config, order: Sequence[int], own: Mapping[str, object]) -> dict[str, object]:
    """The types of layers, where config.json leaves them to their turn, and they are out of it now."""
    if not kind.cycle or "layer_types" in own:
        return {}
    period = config.get(kind.period) if kind.period else None
    length = period if isinstance(period, int) else len(kind.cycle)
    cycle = [*[kind.cycle[0]] * (length - 1), kind.cycle[-1]]
    types = [cycle[layer % length] for layer in order]
    return {} if types == [cycle[at % length] for at in range(len(order))] else {"layer_types": types}


_LEADING, _NUMBERED = ("first_k_dense_replace",), ("mlp_only_layers", "moe_layers")
"""Keys that count the first layers of a kind, or list layers by number, in the config of any class."""


def _number(kind: ModelType | None, config: Config, order: Sequence[int]) -> dict[str, object]:
    """Keys that say which layers are of a kind by their numbers."""
    made: dict[str, object] = {}
    for key in dict.fromkeys((*_NUMBERED, *(kind.numbered if kind else ()))):
        if isinstance(listed := config.get(key), list):
            made[key] = [at for at, layer in enumerate(order) if layer in listed]
    for key in dict.fromkeys((*_LEADING, *(kind.leading if kind else ()))):
        if isinstance(first := config.get(key), int):
            leading = [layer < first for layer in order]
            if leading != sorted(leading, reverse=True):
                raise Refusal("structure-layers", f"{key} {first}: those layers would not come first any more",
                              key="order", hint=f"Put the layers 0 to {first - 1} before all others.")  # fmt: skip
            made[key] = sum(leading)
    return made | _by_turn(config, order, made) | _between(config, order)


def _by_turn(config: Config, order: Sequence[int], made: Mapping[str, object]) -> dict[str, object]:
    """Which layers have experts, where every so many do (Qwen's MoE), and they are out of their turn now."""
    step, dense = config.get("decoder_sparse_step"), config.get("mlp_only_layers") or ()
    if not isinstance(step, int) or step < 2 or not isinstance(dense, Sequence):
        return {}
    kept = made.get("mlp_only_layers")
    listed = kept if isinstance(kept, list) else []
    flags = [(layer + 1) % step != 0 or layer in dense for layer in order]
    if flags == [(at + 1) % step != 0 or at in listed for at in range(len(order))]:
        return {}
    return {"decoder_sparse_step": 1, "mlp_only_layers": [at for at, flag in enumerate(flags) if flag]}


_FIRST, _LAST = "moe_layer_start_index", "moe_layer_end_index"


def _between(config: Config, order: Sequence[int]) -> dict[str, object]:
    """The first and the last layer with experts, where those between have them, too (Ernie 4.5). Raises Refusal."""
    first, last = config.get(_FIRST), config.get(_LAST)
    if not isinstance(first, int) or not isinstance(last, int) or config.get("moe_layer_interval", 1) != 1:
        return {}
    having = [at for at, layer in enumerate(order) if layer >= first and (last < 0 or layer <= last)]
    if not having:
        return {}
    if len(having) != having[-1] - having[0] + 1:
        raise Refusal("structure-layers", f"{_FIRST} {first} and {_LAST} {last}: layers with experts would not follow "
                      "each other any more", key="order", hint="Keep them together.")  # fmt: skip
    return {_FIRST: having[0], _LAST: -1 if last < 0 and having[-1] == len(order) - 1 else having[-1]}


def become(kind: ModelType, other: ModelType, config: Config) -> dict[str, object]:
    """The patch that makes a model one of another class, with what its own class would take for keys that are not
    there."""
    rope = config.get("rope_parameters")
    given = {*config, *(rope if isinstance(rope, Mapping) else ())}
    return {**identity(other), **{key: value for key, value in kind.defaults.items() if key not in given}}
