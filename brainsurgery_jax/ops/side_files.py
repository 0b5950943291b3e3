"""Ops on the config of an alias."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, cast

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt

from brainsurgery_jax.config_patch import Change, apply_change, find_doubts, find_setting, is_same, patch_mapping
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import adapter_differences, read_adapter
from brainsurgery_jax.families.compare import describes, differences
from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import Name, assertion, control
from brainsurgery_jax.ops._verdicts import check_bounds, judge_bounds
from brainsurgery_jax.protocol import Edit, Known, SetConfig, Verdict, View
from brainsurgery_jax.wording import few

Setting = Annotated[object, Field(description="a value of YAML; null: the key is null, or not there")]
Settings = Annotated[tuple[object, ...], Field(description="values, one of which it must be")]

Limit = StrictInt | StrictFloat
Patch = Annotated[Mapping[str, object], Field(description="keys and the values to set; mappings are merged key by key")]
Keys = Annotated[
    tuple[Text, ...],
    BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    Field(description="keys to remove"),
]
SideFile = Annotated[Text, Field(description="another JSON file beside the weights; by default the config")]


@dataclass(frozen=True)
class LimitKeys(KeyGroup):
    """Bounds of a number in a config."""

    ge: Limit | None = None
    gt: Limit | None = None
    le: Limit | None = None
    lt: Limit | None = None

    @property
    def given(self) -> dict[str, float]:
        """The given bounds by their keys."""
        bounds = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return {key: bound for key, bound in bounds.items() if bound is not None}


ADAPTER_CONFIG = "adapter_config.json"

MOST_CHARACTERS = 200
"""Of a value in a message."""


@control("config", configures=True)
def change_config(
    view: View,
    *,
    patch: Patch | None = None,
    remove: Keys = (),
    from_: Text | None = None,
    file: SideFile | None = None,
    alias: Text | None = None,
) -> Iterator[Edit]:
    """Change the config of an alias: config.json, or adapter_config.json for an adapter. Outputs write the result.

    First the part `from` becomes the whole config, then the keys in `remove` are removed, then the values in `patch`
    are set, mappings key by key. A key of an inner mapping is removed as `outer.inner`. An alias without a checkpoint
    of its own starts from the config of the first input, as its output does.
    `file` names another JSON file that travels with the weights, such as tokenizer_config.json or
    generation_config.json. The template of chats is the key `chat_template` of tokenizer_config.json, also where it
    lies in chat_template.jinja: the output writes it to where it was.
    Example: `config: {patch: {num_hidden_layers: 9}, remove: [auto_map]}`
    """
    change = Change(from_ or "", remove, patch or {})
    if change == Change():
        raise Refusal("key-missing", "give at least one of patch, remove and from",
                      hint="Write the values to set: `config: {patch: {num_hidden_layers: 9}}`.")  # fmt: skip
    chosen = alias or _only_alias(view)
    found = view.config(chosen, "alias", file or "")
    if file and found is None:
        view.note("config-key", f"{file} is new: '{chosen}' has no such file", "file",
                  "A file that is to be new is right as it is.")  # fmt: skip
    named, base = found or (file or "config.json", {})
    if not isinstance(base, Mapping):
        raise Refusal("output-config", f"the {named} of '{chosen}' holds no mapping of keys to values", key="alias",
                      hint="Correct its text.")  # fmt: skip
    changed = apply_change(base, change)
    for doubt in find_doubts(base, change, named):
        view.note("config-key", doubt.message, "patch", doubt.hint)
    yield SetConfig(chosen, changed, file or "")


def _only_alias(view: View) -> str:
    """The alias of a step that names none."""
    known = view.aliases()
    if view.default_alias is None and len(known) != 1:
        names = ", ".join(f"'{a}'" for a in known)
        raise Refusal("ref-no-alias", f"whose config is to change? There are {names or 'no aliases'}", key="alias",
                      hint="Add `alias: NAME`.")  # fmt: skip
    return view.default_alias or known[0]


@assertion()
def config(view: View, *, of: Name, is_: Setting = None, in_: Settings = (), limits: LimitKeys) -> Verdict:
    """A key of a config has the value `is`, or one of those `in`; or it is a number that satisfies all bounds.

    `of` is the key, after the alias; dots lead to inner keys. The config is the current config.json, or for an adapter
    its adapter_config.json; a missing key is null.
    Example: `assert: {config: {of: num_hidden_layers, is: 24}}`
    """
    bounds = limits.given
    if bounds:
        check_bounds(bounds, whole=False)
    found = view.config(of.alias, "of")
    key = view.literal(of, "of")
    if found is None:
        return Known(False, f"'{of.alias}' came without a config.json, so '{key}' is not known")
    file, settings = found
    value = find_setting(settings, key)
    label = f"'{key}' in {file} of '{of.alias}'"
    allowed = [*in_, *([is_] if is_ is not None or not (in_ or bounds) else [])]
    if allowed and not any(is_same(value, one) for one in allowed):
        wanted = f"not {_show(allowed[0])}" if len(allowed) == 1 else f"none of {', '.join(map(_show, allowed))}"
        return Known(False, f"{label} is {_show(value)}, {wanted}")
    if not bounds:
        return Known(True)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Known(False, f"{label} is {_show(value)}, which is no number")
    return judge_bounds(label, value, bounds)


@assertion(bare="alias")
def consistent(view: View, *, alias: Text) -> Verdict:
    """The config of an alias agrees with the names and shapes of its tensors, as far as its family is known.

    Compared are the numbers of layers, heads and experts, hidden size, words, biases, whether words are tied, classes
    and dtypes; of an adapter its rank and what it adapts. An alias without a config does not hold, nor does one of a
    family that is not known.
    Example: `assert: {consistent: model}`
    """
    found = view.config(alias, "alias")
    if found is None or not isinstance(found[1], Mapping):
        return Known(False, f"'{alias}' came without a config.json, so nothing can be compared")
    file, settings = found[0], cast("Mapping[str, object]", found[1])
    avals = {name: view.fetch(alias, name).aval for name in view.names(alias)}
    if file == ADAPTER_CONFIG:
        differs = adapter_differences(settings, read_adapter(avals))
    elif not describes(settings, avals):
        hint = "Assert what you know: `assert: {config: {of: KEY, is: VALUE}}`, `assert: {count: ...}`."
        return Known(False, f"no family is known whose tensors '{alias}' has, so nothing can be compared", hint=hint)
    else:
        names = {id(expr): name for name, expr in view.original(alias).items()}
        now = {name: view.fetch(alias, name) for name in avals}
        differs = differences(settings, avals, {n: names[id(e)] for n, e in now.items() if id(e) in names})
    if not differs:
        return Known(True)
    patch: Mapping[str, object] = {}
    for each in differs:
        patch = patch_mapping(patch, each.patch)
    hint = f"Put `- config: {json.dumps({'patch': patch, 'alias': alias})}` before this step." if patch else ""
    return Known(False, f"{file} of '{alias}' says otherwise: {few([d.message for d in differs])}", hint=hint)


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
