"""LoRA of stacked experts, parameters [experts, m, n] without a module of their own: `target_parameters` of PEFT.

PEFT keeps one pair of factors for all experts: `lora_A` [experts * r, in], an expert's rows together, and `lora_B`
[out, r * experts], a rank's columns together. Several parameters of a module are told apart by `base_layer` in names,
once for each parameter that the class has behind it; here the shapes tell which is meant.

Reference: https://huggingface.co/docs/peft/developer_guides/lora (targeting parameters directly).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.adapters.architecture import Architecture
from brainsurgery_jax.adapters.reading import ModuleFinder
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD, value_for
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.ops.shape import concatenate, section, with_shape
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.wording import few

_FACTOR = re.compile(r"(.+?)((?:\.base_layer)*)\.lora_([AB])(?:\.\w+)?\.weight")

_STACKED = re.compile(r"(?:\.base_layer|\bexperts)\.lora_[AB](?:\.\w+)?\.weight$")
"""Names that only factors of parameters have."""

_ORDER = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of stacked experts, in the order in which the classes of transformers have them. PEFT wraps a module once
for each that it adapts, so the factors of the last one have no `base_layer` in their names."""

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


def is_stack(config: Mapping[str, object], name: str, shape: Shape) -> bool:
    """Whether a tensor is a parameter [experts, m, n] that PEFT adapts, of a class that says which axis is which. A
    single expert is none: PEFT takes its parameter for a matrix."""
    module, _, parameter = name.rpartition(".")
    known = parameter in _ORDER and module.rpartition(".")[2] == "experts" and is_transposed(config) is not None
    return known and len(shape) == 3 and shape[0] > 1


def nest(parameters: Collection[str]) -> dict[str, str]:
    """What stands between the name of a module and that of the factors, for each of its parameters that are adapted.
    Empty if the order of the parameters in their class is not known."""
    if len(parameters) > 1 and not set(parameters) <= set(_ORDER):
        return {}
    ordered = sorted(parameters, key=lambda p: _ORDER.index(p) if p in _ORDER else 0)
    return {p: ".base_layer" * (len(ordered) - 1 - at) for at, p in enumerate(ordered)}


Factors = tuple[TensorExpr, TensorExpr]
"""`b` [outputs, r] and `a` [r, inputs], whose product is a change of a matrix."""


def join_factors(view: View, pairs: Sequence[Factors]) -> Factors:
    """The factors `b` [out, r * experts] and `a` [experts * r, in] of those of each expert, [out, r] and [r, in]."""
    out, rank = pairs[0][0].aval.shape
    single = [view.apply(with_shape, b, shape=(out, rank, 1)) for b, _ in pairs]
    b = view.apply(with_shape, view.apply(concatenate, *single, axis=2), shape=(out, rank * len(pairs)))
    return b, view.apply(concatenate, *(a for _, a in pairs), axis=0)


def cut_factors(view: View, b: TensorExpr, a: TensorExpr, experts: int) -> list[Factors]:
    """The factors [out, r] and [r, in] of each expert: what `join_factors` joined."""
    (rows, ins), out = a.aval.shape, b.aval.shape[0]
    rank = rows // experts
    thick, stack = (out, rank, experts), (experts, rank, ins)
    bs, rows_of = view.apply(with_shape, b, shape=thick), view.apply(with_shape, a, shape=stack)
    return [
        (
            view.apply(with_shape, view.apply(section, bs, axis=2, start=e, stop=e + 1), shape=(out, rank)),
            view.apply(with_shape, view.apply(section, rows_of, axis=0, start=e, stop=e + 1), shape=(rank, ins)),
        )
        for e in range(experts)
    ]


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
        if match is not None and any(_ends(module, end) for end in modules):
            found.setdefault(module, {}).setdefault(match[2], {})[match[3]] = name
    return found


def _ends(module: str, own: str) -> bool:
    """Whether a module is one that a target names, which may name none."""
    return not own or f".{module}".endswith(f".{own}")


class Wrapped(NamedTuple):
    """The factors of a parameter of a module, as far as an adapter itself tells: their names, the name of the parameter
    as patterns of ranks have it, the rank of each expert, and the number of experts."""

    a: str
    b: str
    parameter: str
    rank: int
    experts: int


def read_wrapped(alias: str, shapes: Mapping[str, Shape], config: Mapping[str, object]) -> list[Wrapped]:
    """The factors of stacked experts in an adapter, without its base. Raises Refusal if it does not tell them apart."""
    found: list[Wrapped] = []
    if not _targets(config) and (name := next(filter(_STACKED.search, shapes), None)) is not None:
        message = f"'{name}' of '{alias}' is a factor of stacked experts, and how many these are is not known"
        hint = "Open the folder that holds the adapter, for `r` and `target_parameters` of its adapter_config.json."
        raise Refusal("adapter-merge", message, key="adapter", hint=hint)
    for module, pairs in _nested_factors(shapes, config).items():
        named = [last for own, _, last in (t.rpartition(".") for t in _targets(config)) if _ends(module, own)]
        nested = {behind: parameter for parameter, behind in nest(list(dict.fromkeys(named))).items()}
        if not module.endswith("experts") and len(nested) != len(pairs):
            continue  # a module that a target without one does not mean
        for behind, pair in pairs.items():
            rank = _said_rank(config, f"{module}.{nested.get(behind, '')}")
            rows = shapes[pair["A"]][0] if pair.keys() == {"A", "B"} else 0
            if len(nested) != len(pairs) or behind not in nested or not rank or not rows or rows % rank:
                message = (
                    f"which parameter of '{module}' do {few([repr(n) for n in pair.values()])} of '{alias}' change?"
                )
                hint = "Extract the adapter anew with the rank that is wanted: `lora_extract`."
                raise Refusal("adapter-merge", message, key="adapter", hint=hint)
            found.append(Wrapped(pair["A"], pair["B"], f"{module}.{nested[behind]}", rank, rows // rank))
    return found


def _said_rank(config: Mapping[str, object], parameter: str) -> int:
    """What a config says of the rank of a parameter; 0 if it says nothing that could be one."""
    pattern, usual = config.get("rank_pattern"), config.get("r")
    said = value_for(parameter, pattern if isinstance(pattern, Mapping) else {}, usual if type(usual) is int else 0)
    return said if type(said) is int and said > 0 else 0


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
        named = {last: own for own, _, last in split if _ends(module, own)}
        stored = {last: base.model.shapes.get(f"{ours}.{last}", ()) for last in named}
        if any(len(shape) == 2 for shape in stored.values()):
            continue  # a matrix, as of any module
        if (missing := next((last for last, own in named.items() if own and not stored[last]), None)) is not None:
            message = f"'{base.alias}' has no '{module}.{missing}', which '{alias}' changes"
            hint = f"If each expert has tensors of its own: `experts: {{names: stacked, alias: {base.alias}}}`."
            raise Refusal("adapter-merge", message, key="adapters", hint=hint)
        if ours is None or not any(stored.values()):
            continue  # a module that a target without one does not mean
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
