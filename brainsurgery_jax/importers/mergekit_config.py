"""A mergekit configuration as data: models, slices, parameters. Unsupported parts are refused, at their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Span, did_you_mean
from brainsurgery_jax.importers.config_reader import FORM, UNSUPPORTED
from brainsurgery_jax.importers.mergekit_parameters import PARAMETERS, ParameterReader, Parameters, value_at
from brainsurgery_jax.importers.mergekit_words import AskedChat, Tokenizer, read_chat, read_tokenizer
from brainsurgery_jax.plan.overrides import read_yaml
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, describe, get, shorten

BY_EXPRESSION = ("linear", "task_arithmetic", "passthrough")
"""Methods that become `compute` and `copy` steps; the others become one step `merge`."""
NEEDS_BASE = (
    "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
    "model_stock", "sce", "arcee_fusion", "nearswap", "ram", "ramplus_tl",
)  # fmt: skip
_KEYS = ("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
         "tokenizer_source", "tokenizer", "chat_template")  # fmt: skip
_PARTS = ("sources", "model", "layer_range", "filter", "value", "source")
_MOST_LAYERS = 100_000
_DTYPES = ("float16", "bfloat16", "float32", "float64")


_WORDS = frozenset((*_KEYS, *_PARTS, *(word for words in PARAMETERS.values() for word in words)))
"""All keys with a meaning. Others are helpers, which may be repeated."""


@dataclass(frozen=True, slots=True)
class MergeSource:
    """A model, or some of its layers, with its own parameters."""

    model: str
    span: Span
    parameters: Parameters
    layers: range | None = None


class MergeSlice(NamedTuple):
    """Layers of the result, merged from the same number of layers of each source."""

    sources: tuple[MergeSource, ...]
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration. `sliced`: its slices take layers of models; else its only slice takes whole models."""

    file: str
    method: str
    slices: tuple[MergeSlice, ...]
    sliced: bool
    base: str | None
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    tokenizer: Tokenizer | None
    chat: AskedChat | None
    notes: tuple[str, ...]
    spans: Mapping[str, Span]

    @property
    def models(self) -> Mapping[str, Span]:
        """Every model, the base first, with the place of its first mention."""
        found = {} if self.base is None else {self.base: self.spans["base_model"]}
        for piece in self.slices:
            for source in piece.sources:
                found.setdefault(source.model, source.span)
        return found

    def value(
        self, parameter: str, piece: MergeSlice, source: MergeSource | None, name: str, depth: float
    ) -> float | None:
        """The value of a parameter for a tensor: the most specific setting wins."""
        levels = (source.parameters if source else {}, piece.parameters, self.parameters)
        found = (value_at(level[parameter], name, depth) for level in levels if parameter in level)
        return next((value for value in found if value is not None), None)

    def needed(self, parameter: str, piece: MergeSlice, source: MergeSource, name: str, depth: float = 0.0) -> float:
        """The value of a parameter that mergekit has no default for. Raises PlanError if nothing gives it."""
        found = self.value(parameter, piece, source, name, depth)
        if found is None:
            about = f" for '{name}'" if name else ""
            hint = f"Add `parameters: {{{parameter}: 1.0}}` to it, or to the configuration, with a value of your own."
            if any(parameter in level for level in (source.parameters, piece.parameters, self.parameters)):
                hint = f"Make its `{parameter}` a list whose last item is `value: 1.0`, without a filter."
            message = f"'{source.model}' has no {parameter}{about}"
            raise PlanError([Diagnostic(FORM, message, source.span, hint)])
        return found


def read_root(path: str) -> Node | None:
    """The tree of a configuration. Raises PlanError if it is no YAML."""
    return read_yaml(path, repeatable=lambda key: key not in _WORDS)


def read_config(path: str, root: Node | None) -> Config:
    """Read a configuration. Raises PlanError with every mistake, and everything that a plan cannot express."""
    reader = _ConfigReader()
    if not isinstance(root, Map):
        found = describe(root) if root else "nothing"
        raise PlanError([Diagnostic(FORM, f"expected a mergekit configuration, got {found}", Span(path, 1, 1))])
    config = reader.config(root, path)
    if reader.problems:
        raise PlanError(reader.problems)
    return config


_FREE = ("configuration", "slice", "model")
"""Mappings in which mergekit ignores unknown keys."""


def _value_of(node: Map, key: str) -> Node | None:
    """The value of a key; None if it is missing or null."""
    found = get(node, key)
    return None if isinstance(found, Scalar) and found.value is None else found


def _with_base(models: MergeSlice, base: str, span: Span) -> MergeSlice:
    """Whole models including the base, whether it is listed or not."""
    if any(source.model == base for source in models.sources):
        return models
    return models._replace(sources=(*models.sources, MergeSource(base, span, {})))


class _ConfigReader:
    """Reads one configuration and collects its mistakes in `problems`."""

    def __init__(self) -> None:
        self.problems: list[Diagnostic] = []
        self.notes: list[str] = []
        self.method = ""
        self.parameters = ParameterReader(self, "")

    def complain(self, message: str, node: Node, hint: str = "", code: str = FORM) -> None:
        self.problems.append(Diagnostic(code, message, node.span, hint))

    def config(self, root: Map, path: str) -> Config:
        self.check_keys(root, _KEYS, "configuration")
        self.method = self.method_of(root)
        self.parameters = ParameterReader(self, self.method)
        base = _value_of(root, "base_model")
        base_path = None if base is None else self.model(base)
        slices, sliced = self.slices(self.only_module(root))
        if base is not None and base_path and slices and not sliced and self.method == "linear":
            slices = (_with_base(slices[0], base_path, base.span),)
        if self.method in NEEDS_BASE and base is None:
            self.complain(f"{self.method} needs a base model", root, "Add `base_model: PATH`.")
        parameters = self.parameters.read(get(root, "parameters"))
        self.parameters.refuse_missing(root, [parameters, *(piece.parameters for piece in slices)])
        return Config(
            path, self.method, slices, sliced, base_path, parameters,
            self.dtype(root, "dtype"), self.dtype(root, "out_dtype"), read_tokenizer(root, self), read_chat(root, self),
            tuple(self.notes),
            {key.text: value.span for key, value in root.entries},
        )  # fmt: skip

    def check_keys(self, node: Map, keys: Sequence[str], where: str) -> None:
        """Refuse a key that is misspelt or misplaced, and note any other unknown key, which mergekit ignores."""
        for key, _ in node.entries:
            if key.text in keys:
                continue
            near = did_you_mean(key.text, keys)
            if near or key.text in _WORDS or where not in _FREE:
                message = f"the key '{key.text}' of a {where} is not supported.{near}"
                self.complain(message, key, f"Supported: {', '.join(keys)}.", UNSUPPORTED)
            else:
                self.note(key, "is ignored")

    def note(self, key: Scalar, what: str) -> None:
        self.notes.append(f"{key.text} ({key.span.file}:{key.span.line}) {what}.")

    def method_of(self, root: Map) -> str:
        node = get(root, "merge_method")
        method = node.value if isinstance(node, Scalar) else None
        if method in PARAMETERS:
            return str(method)
        hint = f"Supported: {', '.join(PARAMETERS)}."
        if node is None:
            self.complain("there is no merge_method", root, hint)
        else:
            near = did_you_mean(str(method), PARAMETERS)
            self.complain(f"unknown merge method: {describe(node)}.{near}", node, hint)
        return ""

    def only_module(self, root: Map) -> Map:
        """What has `models` or `slices`: the configuration, or the only entry of its `modules`."""
        if (modules := get(root, "modules")) is None:
            return root
        entries = modules.entries if isinstance(modules, Map) else ()
        if len(entries) != 1 or not isinstance(entries[0][1], Map):
            hint = (
                "Import each module by a configuration of its own, and put the plans together by hand: a step `merge` "
                "for each, whose key `of` has the pattern of its tensors."
            )
            self.complain(f"expected one module, got {describe(modules)}", modules, hint, UNSUPPORTED)
            return root
        ((_, module),) = entries
        assert isinstance(module, Map)
        self.check_keys(module, ("models", "slices", "parameters"), "module")
        return module

    def within_module(self, module: Map, own: Parameters) -> Parameters:
        """The parameters of a slice, and behind them those of its module."""
        outer = self.parameters.read(get(module, "parameters")) if get(module, "merge_method") is None else {}
        return {name: (*own.get(name, ()), *outer.get(name, ())) for name in dict.fromkeys((*own, *outer))}

    def slices(self, root: Map) -> tuple[tuple[MergeSlice, ...], bool]:
        models, slices = get(root, "models"), get(root, "slices")
        if get(root, "modules") is not None:  # several: that was complained of
            return (), False
        if (models is None) == (slices is None):
            found = "neither" if models is None else "both"
            self.complain(f"expected either `models` or `slices`, got {found}", models or root)
            return (), False
        if models is not None:
            sources = tuple(self.source(n, ranged=False) for n in self.items(models, "models"))
            self.distinct(sources)
            return (MergeSlice(sources, self.within_module(root, {})),), False
        assert slices is not None
        found = (self.slice(n) for n in self.items(slices, "slices"))
        return tuple(s._replace(parameters=self.within_module(root, s.parameters)) for s in found), True

    def items(self, node: Node, where: str) -> Iterator[Map]:
        if not isinstance(node, List) or not node.items:
            self.complain(f"{where}: expected a list, got {describe(node)}", node)
            return
        for item in node.items:
            if isinstance(item, Map):
                yield item
            else:
                self.complain(f"{where}: expected a mapping, got {describe(item)}", item)

    def slice(self, node: Map) -> MergeSlice:
        self.check_keys(node, ("sources", "parameters"), "slice")
        sources = tuple(self.source(n, ranged=True) for n in self.items(get(node, "sources") or node, "sources"))
        self.distinct(sources)
        if len({len(s.layers) for s in sources if s.layers is not None}) > 1:
            self.complain("the sources of a slice have different numbers of layers", node)
        return MergeSlice(sources, self.parameters.read(get(node, "parameters")))

    def distinct(self, sources: Sequence[MergeSource]) -> None:
        seen: set[str] = set()
        for source in sources:
            if source.model and source.model in seen:
                message = f"'{source.model}' is merged with itself, which cannot be imported"
                hint = "Write the step by hand: `compute` takes any tensors by name."
                if source.layers is None:
                    hint = "List it once, with the sum of its weights."
                self.problems.append(Diagnostic(UNSUPPORTED, message, source.span, hint))
            seen.add(source.model)

    def source(self, node: Map, *, ranged: bool) -> MergeSource:
        self.check_keys(node, ("model", "layer_range", "parameters") if ranged else ("model", "parameters"), "model")
        model = get(node, "model")
        if model is None:
            self.complain("missing key 'model'", node, "Add `model: PATH`.")
        layers = self.layers(get(node, "layer_range"), node) if ranged else None
        return MergeSource(
            self.model(model) if model else "", node.span, self.parameters.of_model(get(node, "parameters")), layers
        )

    def layers(self, node: Node | None, source: Map) -> range | None:
        items = node.items if isinstance(node, List) else ()
        bounds = [item.value for item in items if isinstance(item, Scalar)]
        match bounds:
            case [int(start), int(stop)] if 0 <= start < stop <= _MOST_LAYERS:
                return range(start, stop)
        found = describe(node) if node else "nothing"
        if bounds and len(bounds) == len(items):
            found = shorten(f"[{', '.join(map(str, bounds))}]")
        hint = "END is the number of the first layer that is not taken: `[0, 1]` is layer 0 alone."
        self.complain(f"layer_range: expected [FIRST, END] with FIRST < END, got {found}", node or source, hint)
        return None

    def model(self, node: Node) -> str:
        """The path of a model, with `+` and that of an adapter."""
        if isinstance(node, Map):
            parts = [self.path_within(node, key) for key in ("model", "lora") if get(node, key) is not None]
            if parts and all(parts) and {key.text for key, _ in node.entries} <= {"model", "lora"}:
                return "+".join(parts)
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            hint = (
                "Write `PATH`, `NAME@REVISION`, or `{model: {path: NAME, revision: REVISION}}`. No key overrides more."
            )
            self.complain(f"expected the path of a model, got {describe(node)}", node, hint, UNSUPPORTED)
            return ""
        if not all(node.value.split("+")) or node.value.count("+") > 1:
            hint = "Write `MODEL`, or `MODEL+ADAPTER` with one adapter."
            self.complain(f"expected a model and at most one adapter, got {describe(node)}", node, hint)
        return node.value

    @staticmethod
    def path_within(node: Map, key: str) -> str:
        """What `{KEY: {path: PATH, revision: REVISION}}` says, as `PATH@REVISION`; empty if it says more."""
        inner = get(node, key)
        if not isinstance(inner, Map) or not {key.text for key, _ in inner.entries} <= {"path", "revision"}:
            return ""
        path, revision = get(inner, "path"), _value_of(inner, "revision")
        if not isinstance(path, Scalar) or not isinstance(path.value, str):
            return ""
        return f"{path.value}@{revision.text}" if isinstance(revision, Scalar) else path.value

    def dtype(self, root: Map, key: str) -> str | None:
        node = get(root, key)
        if node is None or (isinstance(node, Scalar) and node.value is None):
            return None
        if isinstance(node, Scalar) and node.value in _DTYPES:
            return str(node.value)
        self.complain(f"{key}: expected one of {', '.join(_DTYPES)}, got {describe(node)}", node)
        return None
