"""Adapters: taken out of a fine-tuned model, folded into a base, cut to another rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated

from pydantic import AfterValidator, Field, StrictInt, WithJsonSchema

from brainsurgery_jax.dtypes import FLOAT32
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import DTypeName, Makes, Real, Role, control
from brainsurgery_jax.ops.lowrank import MethodKeys
from brainsurgery_jax.protocol import Edit, View
from brainsurgery_jax.select import Ref

Among = Annotated[Ref, Role("pattern", beside="base", fallback="-", read=True)]


RankKey = Annotated[StrictInt, Field(ge=1, description="rank of every matrix")]
ShareKey = Annotated[Real, Field(description="share of its squared singular values that a matrix keeps")]


@dataclass(frozen=True)
class ExtentKeys(KeyGroup):
    """How large the factors are: one of these."""

    rank: RankKey | None = None
    energy: ShareKey | None = None
    budget: Annotated[StrictInt, Field(ge=1, description="parameters of all factors together")] | None = None
    least: Annotated[Real, Field(description="with a rank: singular values up to this are left out")] | None = None
    whole: Annotated[tuple[Text, ...], Field(min_length=1, description="modules that are kept whole")] | None = None


@dataclass(frozen=True)
class ResizeKeys(KeyGroup):
    """How large the new factors are: one of these."""

    rank: RankKey | None = None
    energy: ShareKey | None = None


def check_extent(**given: float | None) -> None:
    """Refuse none of the keys, or several, and what is no share."""
    if (count := sum(value is not None for value in given.values())) != 1:
        *some, last = given
        found = f"Of {', '.join(some)} and {last} give one, not {'several' if count else 'none'}"
        raise Refusal("key-missing", f"how large are the factors? {found}",
                      hint="Write `rank: 16`, or `energy: 0.95`.")  # fmt: skip
    energy = given["energy"]
    if energy is not None and not 0 < energy <= 1:
        raise Refusal("value-type", f"expected a share above 0 and at most 1, got {energy:g}", key="energy",
                      hint="To keep 95 % write `energy: 0.95`.")  # fmt: skip


@dataclass(frozen=True)
class TunedKeys(KeyGroup):
    """A model and what became of it."""

    base: Annotated[Text, Field(description="alias of the model that the other was made of")]
    tuned: Annotated[Text, Field(description="alias of the fine-tuned model")]


@control(makes=Makes("to"), configures=True)
def lora_extract(
    view: View,
    *,
    models: TunedKeys,
    to: Annotated[Text, Field(description="alias of the adapter, created if there is none")],
    extent: ExtentKeys,
    of: Among | None = None,
    dtype: DTypeName | None = None,
    how: MethodKeys,
) -> Iterator[Edit]:
    """Take an adapter out of a fine-tuned model: with it, PEFT makes that model of the base.

    Matrices that differ, convolutions, and stacked experts one by one, become two factors, whose product is the best
    approximation of the change: of one `rank`; or of the least rank that keeps a share of the `energy`; or of ranks
    that share a `budget` of parameters so that all together keep the most. `least` lowers a rank to the number of
    singular values above it. Other tensors that differ are kept whole: biases, norms, tables whose vocabulary was
    resized, matrices whose factors would be larger, and modules whose names end as `whole` says. Factors are float32,
    or of `dtype`. What adapter_config.json says follows from names and shapes. Write it with `format: peft`. `of` is a
    pattern of the names that are looked at.
    Example: `lora_extract: {base: base, tuned: tuned, to: adapter, rank: 16}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    from brainsurgery_jax.adapters.extraction import ExtractStep  # which few plans need
    from brainsurgery_jax.adapters.ranks import Extent

    check_extent(rank=extent.rank, energy=extent.energy, budget=extent.budget)
    if extent.least is not None and extent.rank is None:
        raise Refusal("key-missing", "`least` lowers a `rank`, and there is none", key="least",
                      hint="Write `rank: 16` beside it, or leave it out.")  # fmt: skip
    if extent.least is not None and extent.least < 0:
        raise Refusal("value-type", f"no singular value is below 0, and least is {extent.least:g}", key="least",
                      hint="Write a bound of at least 0, such as `least: 0.01`.")  # fmt: skip
    if dtype is not None and not dtype.is_float:
        raise Refusal("dtype-unsupported", f"factors are floats, and {dtype} is none", key="dtype",
                      hint="Write `dtype: bfloat16`, or leave it out for float32.")  # fmt: skip
    wanted = Extent(extent.rank, extent.energy, extent.budget, extent.least, extent.whole or ())
    yield from ExtractStep(view, models.base, models.tuned, to, wanted, how, of, dtype or FLOAT32).edits()


def read_weights(value: object) -> Mapping[str, float]:
    """The adapters with their weights: one alias, a list of them, or a mapping of aliases to weights."""
    wanted = "expected an alias, a list of aliases, or a mapping of aliases to weights"
    match value:
        case str() if value:
            return {value: 1.0}
        case list() | tuple() if value and all(isinstance(alias, str) for alias in value):
            if (twice := next((alias for alias in value if value.count(alias) > 1), None)) is not None:
                raise ValueError(f"'{twice}' is named twice: name it once, with the weight of both, `{{{twice}: 2}}`")
            return dict.fromkeys(value, 1.0)
        case Mapping() if value:
            numbers = {
                str(a): float(w) for a, w in value.items() if isinstance(w, int | float) and not isinstance(w, bool)
            }
            if (odd := next((alias for alias, weight in numbers.items() if not isfinite(weight)), None)) is not None:
                raise ValueError(f"the weight of '{odd}' is {numbers[odd]}, and weights are finite")
            if len(numbers) == len(value):
                return numbers
    raise ValueError(f"{wanted}, got {value!r}")


_WEIGHTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": "number"}},
    ]
}
Weights = Annotated[
    object,
    AfterValidator(read_weights),
    WithJsonSchema(_WEIGHTS),
    Field(description="aliases of adapters, each with its weight"),
]


Settings = Annotated[Mapping[str, object], Field(description="keys of adapter_config.json that count instead")]


@control(makes=Makes("to"), configures=True)
def lora_merge(
    view: View,
    *,
    base: Annotated[Text, Field(description="alias of the model")],
    adapters: Weights,
    to: Annotated[Text, Field(description="alias of the result; without it, the base is changed")] | None = None,
    config: Settings | None = None,
) -> Iterator[Edit]:
    """Merge adapters into a model: with one of weight 1, the result is what `peft` merges.

    How a product counts is read from adapter_config.json: lora_alpha, alpha_pattern, use_rslora, DoRA, fan_in_fan_out,
    and the ranks from shapes. Tables of tokens, biases, modules that were saved whole, trained tokens and convolutions
    are merged as well. Names are those of PEFT, of diffusers, or of kohya with its `alpha`. Every tensor of an adapter
    is used, or the step is refused. Sums are computed in float32 and rounded once, to the dtype of the base. A step
    `compute` is done for each tensor that changes; `explain` shows them. A head that shares its table with one that an
    adapter changes becomes a tensor of its own, as it is in PEFT while the adapter is not merged.
    Example: `lora_merge: {base: base, adapters: {style: 0.7, subject: 1}, to: merged}`
    Reference: Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685.
    """
    from brainsurgery_jax.adapters.folding import FoldStep

    assert isinstance(adapters, Mapping)
    yield from FoldStep(view, base, adapters, to or base, config).edits()


@control(makes=Makes("to"), configures=True)
def lora_resize(
    view: View,
    *,
    adapter: Annotated[Text, Field(description="alias of an adapter")],
    to: Annotated[Text, Field(description="alias of the result; without it, the adapter is changed")] | None = None,
    extent: ResizeKeys,
    config: Settings | None = None,
) -> Iterator[Edit]:
    """Give an adapter another rank: of each product of factors the best approximation of that `rank`, or of the least
    rank that keeps a share of its `energy`.

    A larger rank adds zeros, and leaves the product as it is. The product is not formed: the cost is that of QR
    factorizations of the factors. adapter_config.json gets the new ranks, and alphas that scale every product as
    before. What is no factor stays, magnitudes of DoRA as well. `config` has what an adapter without its
    adapter_config.json does not tell.
    Example: `lora_resize: {adapter: adapter, rank: 8}`
    """
    from brainsurgery_jax.adapters.ranks import Extent
    from brainsurgery_jax.adapters.resizing import ResizeStep

    check_extent(rank=extent.rank, energy=extent.energy)
    yield from ResizeStep(view, adapter, to or adapter, Extent(extent.rank, extent.energy), config).edits()
