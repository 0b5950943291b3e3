"""Whether the modules that a config lists as not quantized are those that are floats, after steps renamed some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from brainsurgery_jax.codes import CONFIG_KEY, find_codes, key_of_floats, quantized_among
from brainsurgery_jax.families.model import ConfigDifference
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.following import leaves_of
from brainsurgery_jax.select import names_begun

WEIGHT = ".weight"


def list_differences(
    config: Mapping[str, object],
    tensors: Mapping[str, Expr],
    config_before: Callable[[Expr], Mapping[str, object] | None],
) -> Iterator[ConfigDifference]:
    """That a list of modules which are not quantized names some that are, or no longer names floats that steps renamed.
    `config_before`: the config beside the checkpoint of a leaf."""
    key, entries = _list_of_floats(config)
    if not entries:
        return
    codes = [c.result.removesuffix(WEIGHT) for c in quantized_among({n: e.aval.dtype for n, e in tensors.items()})]
    if not codes:
        return
    wrong = [entry for entry in entries if any(_covers(entry, module) for module in codes)]
    matrices = list(_float_matrices(tensors))
    listed = _may_be_listed(entries, [m for m, _ in matrices])
    moved = [m for m, expr in matrices if m not in listed and _was_listed(m, expr, config_before)]
    if not wrong and not moved:
        return
    freed = [m for m, _ in matrices if any(_covers(entry, m) for entry in wrong)]
    made = list(dict.fromkeys([*(entry for entry in entries if entry not in wrong), *freed, *moved]))
    told = [
        *([f"names '{wrong[0]}', which is quantized{_others(wrong)}"] if wrong else []),
        *([f"does not name '{moved[0]}', floats that were listed by another name{_others(moved)}"] if moved else []),
    ]
    yield ConfigDifference(f"{CONFIG_KEY}.{key} in config.json {', and '.join(told)}", {CONFIG_KEY: {key: made}})


def _others(names: Sequence[str]) -> str:
    return f" ({len(names) - 1} more like it)" if len(names) > 1 else ""


def _list_of_floats(config: Mapping[str, object] | None) -> tuple[str, list[str]]:
    """The key of the list of modules that are not quantized, and its entries."""
    settings = (config or {}).get(CONFIG_KEY)
    if not isinstance(settings, Mapping):
        return "", []
    key = key_of_floats(settings)
    listed = settings.get(key)
    return key, [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def _float_matrices(tensors: Mapping[str, Expr]) -> Iterator[tuple[str, Expr]]:
    """The modules whose weight is a matrix of floats, with the weight."""
    for name, expr in tensors.items():
        shape, dtype = expr.aval
        is_matrix = name.endswith(WEIGHT) and len(shape) > 1 and dtype.is_float and dtype.bits > 8
        if is_matrix and find_codes(name, tensors.__contains__) is None:
            yield name.removesuffix(WEIGHT), expr


def _covers(entry: str, module: str) -> bool:
    """Whether an entry names a module or one around it."""
    return f"{module}.".startswith(f"{entry}.")


def _may_be_listed(entries: Sequence[str], modules: Sequence[str]) -> set[str]:
    """The modules that entries name in one of the ways that loaders allow: by a part of the name, or by a pattern."""
    found = {module for module in modules if any(entry in module for entry in entries)}
    for entry in entries:
        pattern = entry.removeprefix("re:") if entry.startswith("re:") else entry.replace("*", ".*")
        found |= names_begun(pattern, modules)
    return found


def _was_listed(module: str, weight: Expr, config_before: Callable[[Expr], Mapping[str, object] | None]) -> bool:
    """Whether a weight was moved or joined from others, and the config of their checkpoint listed these."""
    for leaf in leaves_of(weight):
        before = leaf.name.removesuffix(WEIGHT)
        if leaf.is_leaf and before != module:
            _, entries = _list_of_floats(config_before(leaf))
            if any(_covers(entry, before) for entry in entries):
                return True
    return False
