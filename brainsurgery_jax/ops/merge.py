"""`merge`: combine models by a published method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, StrictInt, WithJsonSchema

from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.op import DTypeName, Makes, Role, control
from brainsurgery_jax.protocol import Edit, View
from brainsurgery_jax.select import Ref

MethodWord = Annotated[
    Literal[
        "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
        "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "arcee_fusion", "nearswap",
        "ram", "ramplus_tl", "passthrough", "fisher", "regmean", "tsv_m", "iso_c", "magmax", "emr", "consensus",
        "bitdelta",
    ],
    Word,
]  # fmt: skip
OnMismatch = Annotated[
    Literal["error", "skip", "common"],
    Word,
    Field(description="where shapes differ: refuse, leave the model out, or merge the corner that all have"),
]
Compat = Annotated[Literal["no", "mergekit"], Word, Field(description="whose rounding: once at the end, or mergekit's")]


class ModelsGiven(NamedTuple):
    """The parameters of each model by its alias, and the paths of those that are written as inputs are."""

    models: Mapping[str, Mapping[str, object]]
    paths: Mapping[str, str]


def read_models(value: object) -> ModelsGiven:
    """The models with the parameters of each: a list of aliases, or a mapping of aliases to a weight or parameters."""
    wanted = "expected a list of aliases, or a mapping of aliases to a weight or to parameters"
    entries: list[tuple[object, object]]
    paths: dict[str, str] = {}
    match value:
        case list() | tuple():
            split = [each.partition("::") if isinstance(each, str) else (each, "", "") for each in value]
            entries = [(alias, {}) for alias, _, _ in split]
            paths = {str(alias): path for alias, _, path in split if path}
        case Mapping():
            entries = list(value.items())
        case str():
            entries = [(value, {})]
        case _:
            raise ValueError(f"{wanted}, got {value!r}")
    if not entries:
        raise ValueError(f"{wanted}, got none")
    found: dict[str, Mapping[str, object]] = {}
    for alias, own in entries:
        twice = "twice " if isinstance(alias, str) and alias in found else ""
        if twice or not isinstance(alias, str):
            raise ValueError(f"{wanted}, got {twice}{alias!r}")
        if isinstance(own, Mapping) and all(isinstance(key, str) for key in own):
            found[alias] = own
        elif isinstance(own, int | float | list) and not isinstance(own, bool):
            found[alias] = {"weight": own}
        else:
            raise ValueError(f"{wanted}, got {own!r} for '{alias}'")
    return ModelsGiven(found, paths)


_NUMBER = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}, {"type": "object"}]}
_LIST = {"type": "array", "items": {"type": "string"}}
Models = Annotated[
    object,
    AfterValidator(read_models),
    WithJsonSchema({"anyOf": [_LIST, {"type": "object", "additionalProperties": _NUMBER}, {"type": "string"}]}),
    Field(description="aliases, each with a weight or with parameters"),
]
Of = Annotated[Ref, Role("pattern", beside="base", fallback="-", read=True)]


@dataclass(frozen=True)
class ResultKeys(KeyGroup):
    """Which tensors are merged, and what their result is where the models differ."""

    of: Of | None = None
    dtype: DTypeName | None = None
    on_mismatch: OnMismatch = "error"
    compat: Compat = "no"
    layer_axis: Annotated[StrictInt, Field(description="merge tensors that hold all layers layer by layer")] | None = (
        None
    )


@control(makes=Makes("to"))
def merge(
    view: View,
    *,
    method: MethodWord,
    models: Models,
    to: Annotated[Text, Field(description="alias of the result, created if there is none")],
    base: Annotated[Text, Field(description="alias of the model that others were made of")] | None = None,
    parameters: Annotated[Mapping[str, object], Field(description="parameters of the method, for all models")]
    | None = None,
    result: ResultKeys,
) -> Iterator[Edit]:
    """Merge models by a published method, tensor by tensor: those of one name belong together.

    `models` are aliases (of `alias::path`, as inputs are written, what is before the colons): a list, or a mapping of
    each to its weight or to its parameters. A parameter is a number, a list of numbers from the first layer to the
    last (of tensors that hold all layers, layer by layer), or a mapping of patterns to such, of which the first that
    matches a name counts. `of` is a pattern of the
    names to be merged. Results have the dtype of the base, or of the first model, or `dtype`; they are computed in
    float32 (float64 stays) and rounded once. Whole numbers are taken over.
    Random choices depend on the plan's `seed`, the name and the alias of the model. `docs/merging.md` has the formulas.

    Averages: linear, slerp, nuslerp, multislerp, karcher, fisher, regmean. With a base: task_arithmetic, ties,
    dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties, model_stock, sce, arcee_fusion,
    nearswap, ram, ramplus_tl, tsv_m, iso_c, magmax, emr, consensus, bitdelta. One model: passthrough.
    Example: `merge: {method: ties, base: base, models: {a: 0.5, b: {weight: 0.3, density: 0.2}}, to: merged}`
    """
    from brainsurgery_jax.merging.lowering import MergeStep, find_method  # some milliseconds, which few plans need

    assert isinstance(models, ModelsGiven)
    step = MergeStep(
        view, find_method(method), models.models, to, base, parameters,
        result.of, result.dtype, result.on_mismatch, result.compat != "no", result.layer_axis, models.paths,
    )  # fmt: skip
    yield from step.edits()
