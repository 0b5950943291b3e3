"""The parameters of a mergekit configuration as data: values for all tensors, or by a filter of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.importers.config_reader import UNSUPPORTED, ConfigReader
from brainsurgery_jax.merging.settings import MergeParameter, between
from brainsurgery_jax.merging.table import METHODS
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, describe, get

_TASK = ("weight", "lambda", "normalize")
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "lambda", "normalize"),
    "passthrough": ("scale",),
    "slerp": ("t",),
    "nuslerp": ("weight", "nuslerp_flatten", "nuslerp_row_wise"),
    "multislerp": ("weight", "normalize_weights", "eps"),
    "karcher": ("max_iter", "tol"),
    "ties": (*_TASK, "density"),
    **{name: (*_TASK, "density", "rescale") for name in ("dare_linear", "dare_ties")},
    **{name: (*_TASK, "density", "epsilon", "rescale") for name in ("della", "della_linear")},
    **{name: (*_TASK, "density", "gamma") for name in ("breadcrumbs", "breadcrumbs_ties")},
    "model_stock": ("filter_wise",),
    "sce": ("select_topk",),
    "arcee_fusion": (),
    "nearswap": ("t",),
    "ram": ("epsilon",),
    "ramplus_tl": ("epsilon", "r", "alpha"),
}
"""The methods that plans can say, and their parameters."""
NAMES = {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
"""Parameters that have another name in a plan."""

_MOST = 1e30
SWITCHES = ("normalize", "rescale", "nuslerp_flatten", "nuslerp_row_wise", "normalize_weights", "filter_wise")


class ParameterValue(NamedTuple):
    """A value for the tensors whose names contain a text (None: all tensors). Several values are spread over the
    layers."""

    filter: str | None
    values: tuple[float, ...]


Setting = tuple[ParameterValue, ...]
Parameters = Mapping[str, Setting]


def value_at(setting: Setting, name: str, depth: float) -> float | None:
    """The value for a tensor at a relative depth from 0 to 1: that of the first filter that its name meets."""
    for condition in setting:
        if condition.filter is None or condition.filter in name:
            return between(condition.values, depth)
    return None


@dataclass(frozen=True)
class ParameterReader:
    """Reads the parameters of a method."""

    config: ConfigReader
    method: str

    def read(self, node: Node | None) -> Parameters:
        """Those under a key `parameters`."""
        if node is None or (isinstance(node, Scalar) and node.value is None):
            return {}
        if not isinstance(node, Map):
            self.config.complain(f"parameters: expected a mapping, got {describe(node)}", node)
            return {}
        used = PARAMETERS.get(self.method, ())
        for key, _ in node.entries:
            if self.method and key.text not in used:
                if near := did_you_mean(key.text, used):
                    message = f"the key '{key.text}' of a {self.method} merge's parameters is not supported.{near}"
                    self.config.complain(message, key, f"Supported: {', '.join(used)}.", UNSUPPORTED)
                else:
                    self.config.note(key, f"has no effect on {self.method}")
        return {key.text: self._setting(key.text, value) for key, value in node.entries if key.text in used}

    def of_model(self, node: Node | None) -> Parameters:
        """The parameters of a model, but for those that mergekit takes for all models alone."""
        found = self.read(node)
        for key, _ in node.entries if isinstance(node, Map) else ():
            if key.text in found and not self._known(key.text).each:
                self.config.note(key, "has no effect below a model: mergekit takes it for all models")
        return {name: setting for name, setting in found.items() if self._known(name).each}

    def _known(self, name: str) -> MergeParameter:
        """What a plan knows of a parameter of the method."""
        return METHODS[self.method].parameters[NAMES.get(name, name)]

    def _setting(self, name: str, node: Node) -> Setting:
        """A number, a list of numbers, a mapping of a filter and a value, or a list of such mappings."""
        if isinstance(node, List) and any(isinstance(item, Map) for item in node.items):
            return tuple(self._condition(name, item) for item in node.items)
        return (self._condition(name, node),)

    def _condition(self, name: str, node: Node) -> ParameterValue:
        if not isinstance(node, Map):
            return ParameterValue(None, self._values(name, node))
        self.config.check_keys(node, ("filter", "value"), "condition")
        chosen, value = get(node, "filter"), get(node, "value")
        if value is None:
            self.config.complain(f"{name}: missing key 'value'", node)
            return ParameterValue(None, (0.0,))
        text = None if chosen is None or not isinstance(chosen, Scalar) or chosen.text == "*" else chosen.text
        return ParameterValue(text, self._values(name, value))

    def _values(self, name: str, node: Node) -> tuple[float, ...]:
        nodes = node.items if isinstance(node, List) else (node,)
        numbers = [n.value for n in nodes if isinstance(n, Scalar) and isinstance(n.value, (int, float))]
        if name in SWITCHES:
            fits, wanted = isinstance(node, Scalar) and node.value in (True, False), "true or false"
        else:
            numbers = [n for n in numbers if not isinstance(n, bool) and abs(n) < _MOST]  # false for NaN, too
            fits = len(numbers) == len(nodes) > 0
            wanted = "a number or a list of numbers"
            known = self._known(name)
            if fits and not all(known.low <= n <= known.high for n in numbers):
                fits, wanted = False, known.span
            elif fits and isinstance(known.default, int) and not (len(numbers) == 1 and float(numbers[0]).is_integer()):
                fits, wanted = False, "one whole number"
        if not fits:
            self.config.complain(f"{name}: expected {wanted}, got {describe(node)}", node)
            return (0.0,)
        return tuple(float(n) for n in numbers)

    def refuse_missing(self, root: Map, given: Sequence[Parameters]) -> None:
        """Complain of a parameter that the method needs, and nothing gives."""
        for name in PARAMETERS.get(self.method, ()):
            known = self._known(name)
            if known.default is None and not any(name in level for level in given):
                hint = f"Add `parameters: {{{name}: 0.5}}` to the configuration, with a value of your own."
                self.config.complain(f"{self.method} needs a {name}: {known.doc}", root, hint)
