"""LoRA of stacked experts, parameters [experts, m, n] without a module of their own: `target_parameters` of PEFT.

PEFT keeps one pair of factors for all experts: `lora_A` [experts * r, in], an expert's rows together, and `lora_B`
[out, r * experts], a rank's columns together. Several parameters of a module are told apart by `base_layer` in names,
once for each parameter that the class has behind it; here the shapes tell which is meant.

Reference: https://huggingface.co/docs/peft/developer_guides/lora (targeting parameters directly).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.adapters.architecture import Architecture
from brainsurgery_jax.adapters.reading import ModuleFinder
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.wording import few

_FACTOR = re.compile(r"(.+?)((?:\.base_layer)*)\.lora_([AB])(?:\.\w+)?\.weight")

Shape = tuple[int, ...]


class StackedFactors(NamedTuple):
    """The factors of a parameter [experts, m, n] of a module: `transposed` if it is [experts, in, out]."""

    module: str
    parameter: str
    a: str
    b: str
    shape: Shape
    transposed: bool

    def rank(self, rows: int) -> int:
        """The rank of an expert's factors, of the rows of `lora_A`."""
        return rows // self.shape[0]

    def product(self, a: str, b: str, rank: int) -> str:
        """The product for every expert, as an expression of the names of the factors."""
        experts, m, n = self.shape
        ins, out = (m, n) if self.transposed else (n, m)
        made = "eio" if self.transposed else "eoi"
        first, second = f"reshape({b}, ({out}, {rank}, {experts}))", f"reshape({a}, ({experts}, {rank}, {ins}))"
        return f'einsum("ore,eri->{made}", {first}, {second})'


def is_transposed(config: Mapping[str, object]) -> bool | None:
    """Whether a class keeps stacked experts as [experts, in, out]; None if the class is not known."""
    kind = MODELS.get(str(config.get("model_type")))
    return None if kind is None or kind.experts is None else kind.experts.transposed


def _targets(config: Mapping[str, object]) -> tuple[str, ...]:
    """The parameters that an adapter_config.json names."""
    listed = config.get("target_parameters")
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def _nested_factors(names: Iterable[str], config: Mapping[str, object]) -> dict[str, dict[str, dict[str, str]]]:
    """The names of factors of parameters: by the module, the `base_layer`s of the name, and `A` or `B`."""
    modules = tuple(dict.fromkeys(target.rpartition(".")[0] for target in _targets(config)))
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name in names:
        match = _FACTOR.fullmatch(name)
        module = match[1].removeprefix(HEAD) if match is not None else ""
        if match is not None and any(f".{module}".endswith(f".{end}") for end in modules):
            found.setdefault(module, {}).setdefault(match[2], {})[match[3]] = name
    return found


class StackedBase(NamedTuple):
    """The base of an adapter: its alias, what is known of it, and its modules."""

    alias: str
    model: Architecture
    finder: ModuleFinder


def read_stacked(
    base: StackedBase, alias: str, shapes: Mapping[str, Shape], config: Mapping[str, object]
) -> list[StackedFactors]:  # fmt: skip
    """The factors of stacked experts in an adapter. `shapes`: those of its tensors. Raises Refusal."""
    found: list[StackedFactors] = []
    for module, pairs in _nested_factors(shapes, config).items():
        ours = base.finder.find(module)
        split = [target.rpartition(".") for target in _targets(config)]
        named = [last for own, _, last in split if f".{module}".endswith(f".{own}")]
        stored = {last: base.model.shapes.get(f"{ours}.{last}", ()) for last in named}
        if any(len(shape) == 2 for shape in stored.values()):
            continue  # a matrix, as of any module
        if ours is None or not all(stored.values()):
            message = f"'{base.alias}' has no '{module}.{next(iter(stored))}', which '{alias}' changes"
            hint = f"If each expert has tensors of its own: `experts: {{names: stacked, alias: {base.alias}}}`."
            raise Refusal("adapter-merge", message, key="adapters", hint=hint)
        for pair in pairs.values():
            found.append(_match(alias, ours, pair, [
                each for name, shape in stored.items() for each in _fits(ours, name, shape, pair, shapes, base.model)
                if not any((ours, name) == (f.module, f.parameter) for f in found)
            ]))  # fmt: skip
    return found


def _match(
    alias: str, module: str, pair: Mapping[str, str], fitting: Sequence[StackedFactors]
) -> StackedFactors:  # fmt: skip
    """The parameter that a pair of factors belongs to. Raises Refusal unless the shapes tell."""
    if len(fitting) == 1:
        return fitting[0]
    names = few([repr(name) for name in pair.values()])
    message = f"which parameter of '{module}' does '{alias}' change by {names}? Shapes do not tell"
    hint = "Merge the adapter by `peft`, and start from its result."
    raise Refusal("adapter-merge", message, key="adapters", hint=hint)


def _fits(
    module: str, name: str, shape: Shape, pair: Mapping[str, str], shapes: Mapping[str, Shape], model: Architecture
) -> Sequence[StackedFactors]:
    """The ways in which factors make a parameter: none, one, or two of a square one whose class is not known."""
    if pair.keys() != {"A", "B"}:
        return ()
    (rows, ins), (out, columns) = shapes[pair["A"]], shapes[pair["B"]]
    if len(shape) != 3 or rows != columns or rows % shape[0]:
        return ()
    turned = is_transposed(model.config)
    ways = (False, True) if turned is None else (turned,)
    return [
        StackedFactors(module, name, pair["A"], pair["B"], shape, way)
        for way in ways
        if ((ins, out) if way else (out, ins)) == shape[1:]
    ]
