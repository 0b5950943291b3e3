"""The tensors of adapters by what they are for, whatever names they have: those of PEFT, diffusers, or kohya.

- PEFT: `base_model.model.m.lora_A.weight` [r, in], `...lora_B.weight` [out, r], `lora_embedding_A` [r, words] and
  `lora_embedding_B` [width, r], `lora_magnitude_vector` of DoRA, `lora_B.bias`, `base_layer.bias`, and whole tensors.
- diffusers: `unet.m.lora_A.weight`, older ones `m.lora.down.weight`, or `m.processor.to_q_lora.down.weight`.
- kohya: `lora_unet_m_with_underscores.lora_down.weight`, `.lora_up.weight`, `.alpha`.

References: https://huggingface.co/docs/peft/developer_guides/checkpoint, https://github.com/kohya-ss/sd-scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from brainsurgery_jax.dtypes import float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.wording import few

_PARTS = {
    "a": r"lora_A(?:\.\w+)?\.weight|lora_down\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight",
    "b": r"lora_B(?:\.\w+)?\.weight|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight",
    "table_a": r"lora_embedding_A(?:\.\w+)?",
    "table_b": r"lora_embedding_B(?:\.\w+)?",
    "magnitude": r"lora_magnitude_vector(?:\.\w+)*",
    "factor_bias": r"lora_B(?:\.\w+)?\.bias",
    "alpha": r"alpha",
    "weight": r"base_layer\.weight",
    "bias": r"base_layer\.bias",
    "tokens": r"token_adapter\.trainable_tokens_delta",
}
_PART = {part: re.compile(rf"(.+)\.(?:{ends})") for part, ends in _PARTS.items()}
_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)_lora\.(down|up)\.weight$")
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.[^.]+$)")
_OF_KOHYA = r"unet|te\d?|transformer|prior_unet|prior_te"
_UNDERSCORED = re.compile(rf"(?:lora_(?:{_OF_KOHYA})|lycoris)_(.+)")
"""Names of modules whose dots are underscores, behind what part of a pipeline they belong to."""

_IDLE = ".original_module."
"""What PEFT saves of a module beside the one that was trained in its place: it counts for nothing."""

_VARIANT = re.compile(r"\.(lora_|dora_scale|hada_|lokr_|oft_|diff(_b)?$)")
"""Names of what variants of LoRA have beside the factors, or in their place."""


def fetch_factor(view: View, alias: str, name: str, key: str) -> TensorExpr:
    """A tensor that products are made of. Raises Refusal for integers: products of them wrap, and rounded to them, no
    factors of another rank have the same product."""
    found = view.fetch(alias, name, key)
    if not found.aval.dtype.is_float:
        raise Refusal("dtype-unsupported", f"factors are floats, and '{name}' is {found.aval}", key=key,
                      hint=float_hint(found.aval.dtype), kinds=("float",))  # fmt: skip
    return found


@dataclass
class AdaptedModule:
    """What an adapter has for a module: the names of its tensors by their part, and whole ones by their parameter."""

    parts: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return (*self.parts.values(), *self.whole.values())

    @property
    def factors(self) -> tuple[str, str] | None:
        """The names of `a` and `b`; None if there are no factors."""
        kinds = ("a", "b"), ("table_a", "table_b")
        return next(((self.parts[a], self.parts[b]) for a, b in kinds if a in self.parts and b in self.parts), None)

    @property
    def is_table(self) -> bool:
        """Whether the factors are those of a table of tokens."""
        return "table_a" in self.parts


def is_scaled_by_config(modules: Iterable[AdaptedModule], *, stacked: bool) -> bool:
    """Whether a config decides by how much a product counts, as there is no tensor that says it. `stacked`: there are
    factors of stacked experts, which have none."""
    return stacked or any("alpha" not in own.parts for own in modules if own.factors is not None)


def read_modules(alias: str, names: Iterable[str], key: str = "adapters") -> dict[str, AdaptedModule]:
    """The modules that an adapter changes, by the names that it has for them. `key`: that which names the adapter.

    Raises Refusal for names that are none of an adapter, and for a factor without the other.
    """
    found: dict[str, AdaptedModule] = {}
    unknown: list[str] = []
    twice: dict[str, tuple[str, str]] = {}
    for name in names:
        if name.startswith(HEAD) and _IDLE in name:
            continue
        plain = _PROCESSOR.sub(lambda m: f".{'to_out.0' if m[1] == 'to_out' else m[1]}.lora.{m[2]}.weight", name)
        part, match = next(((p, m) for p, r in _PART.items() if (m := r.fullmatch(plain))), ("", None))
        if match is not None:
            own = found.setdefault(match[1].removeprefix(HEAD), AdaptedModule())
            if (other := own.parts.setdefault(part, name)) != name:
                twice.setdefault(plain[match.end(1) + 1 :], (other, name))
        elif plain.startswith(HEAD) and "lora_" not in plain and "trainable_tokens" not in plain:
            module, _, parameter = _SAVED.sub("", plain.removeprefix(HEAD)).rpartition(".")
            found.setdefault(module, AdaptedModule()).whole[parameter] = name
        else:
            unknown.append(name)
    if unknown:
        message = f"'{alias}' has tensors of which it is not known how they change a model: {few(unknown)}"
        hint = "LoRA's have names of PEFT, diffusers or kohya. If they are not needed, `delete` them."
        if any(map(_VARIANT.search, unknown)):
            by = "`peft`" if all(name.startswith(HEAD) for name in unknown) else "the program that it is for"
            hint = f"They belong to what was trained. Merge it by {by}, and start from its result."
        raise Refusal("adapter-merge", message, key=key, hint=hint)
    if twice:
        raise _refuse_twice(alias, twice, key)
    _refuse_single(alias, found, key)
    return found


def _refuse_twice(alias: str, twice: Mapping[str, tuple[str, str]], key: str) -> Refusal:
    """That an adapter has two tensors for one part of a module. `twice`: such pairs, by how the second name ends."""
    one, other = next(iter(twice.values()))
    message = f"'{one}' and '{other}' of '{alias}' are one part of one module"
    ends = "|".join(map(re.escape, twice))
    hint = f"Before, {deletion(alias, f'.*({ends})')}."
    return Refusal("adapter-merge", message, key=key, hint=hint)


def differing_head(one: str, other: str) -> str:
    """How `other` begins, up to where it ends like `one`; or `one`, where `other` is the end of it."""
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    same = next((at for at, (x, y) in pairs if x != y), min(len(one), len(other)))
    return other[: len(other) - same] or one[: len(one) - same]


def deletion(alias: str, pattern: str) -> str:
    """The step that deletes what of an adapter is not meant, in words."""
    return f"`delete` what is not meant: `delete: {{target: '{alias}::{pattern}'}}`"


_PIPELINE = re.compile(rf"(?:lora_|lycoris_)(?:{_OF_KOHYA})_|"
                       r"(?:unet|text_encoder(?:_\d)?|transformer|prior|image_encoder|vae)\.")  # fmt: skip
"""How names begin in adapters for the models of a pipeline."""


def part_of_pipeline(name: str) -> str | None:
    """How a tensor's name begins that is for one model of a pipeline; None if it does not tell."""
    found = _PIPELINE.match(name)
    return found[0] if found is not None else None


def _refuse_single(alias: str, modules: Mapping[str, AdaptedModule], key: str) -> None:
    """Refuse factors that stand alone, and what goes with factors where there are none."""
    for module, own in modules.items():
        with_factors = own.parts.keys() & {"a", "b", "table_a", "table_b", "magnitude", "factor_bias", "alpha"}
        if with_factors and own.factors is None:
            name = own.parts[next(part for part in own.parts if part in with_factors)]
            hint = "Use the whole adapter; or `delete` what is left of this module."
            message = f"'{alias}' has '{name}', but not both factors of '{module}'"
            raise Refusal("adapter-merge", message, key=key, hint=hint)


class ModuleFinder:
    """Finds the modules of a base by the names that adapters have for them."""

    def __init__(self, alias: str, names: Iterable[str], name_of: Callable[[str], str] = str) -> None:
        """`name_of`: what PEFT calls a module of the base."""
        self.alias = alias
        self.modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
        self._known = {name_of(module): module for module in self.modules}
        self._underscored: dict[str, list[str]] = {}
        for module in self.modules:
            self._underscored.setdefault(module.replace(".", "_"), []).append(module)

    def find(self, module: str) -> str | None:
        """The module of the base; None if it has none. Raises Refusal if it has several."""
        if module in self.modules:
            return module
        if (own := self._known.get(module)) is not None:
            return own
        if (short := _UNDERSCORED.fullmatch(module)) is not None:
            exact = self._underscored.get(short[1], [])
            ends = (m for key, found in self._underscored.items() if key.endswith(f"_{short[1]}") for m in found)
            return self._only(module, exact or list(ends))
        parts = module.split(".")
        shorter = next((m for at in range(1, len(parts)) if (m := ".".join(parts[at:])) in self.modules), None)
        if shorter is not None and len(parts) > 1:
            return shorter
        return self._only(module, [m for m in self.modules if m.endswith(f".{module}")])

    def _only(self, module: str, found: list[str]) -> str | None:
        if len(found) > 1:
            hint = "Rename the tensors of the adapter, so that each names one module of the base."
            message = f"'{module}' may be several modules of '{self.alias}': {few(found)}"
            raise Refusal("adapter-merge", message, key="adapters", hint=hint)
        return found[0] if found else None
