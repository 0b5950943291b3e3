"""What the config of a model says of quantized weights, and how a step that quantizes or dequantizes changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.codes import (
    CONFIG_KEY,
    Codes,
    describe_floats,
    find_codes,
    find_codes_beside,
    fits,
    key_of_floats,
)
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, SetConfig, View
from brainsurgery_jax.select import Ref


class CodeRequest(NamedTuple):
    """How a step quantizes."""

    to: str
    per: str
    block: tuple[int, int]
    transposed: bool
    group: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns that share a scale; 0 for all of them."""
        return {"tensor": (0, 0), "channel": (1, 0)}.get(self.per, self.block)

    @property
    def ending(self) -> str:
        """How the names of scales end."""
        return "_scale_inv" if self.per == "block" and self.to != "int8" else "_scale"


def find_quantized(view: View, alias: str, names: Iterable[str]) -> Iterator[Codes]:
    """The quantized weights whose codes are among some tensors."""
    known = set(view.names(alias))
    for name in names:
        codes = find_codes(name, known.__contains__)
        if codes is not None and fits(codes, view.fetch(alias, name, "target").aval.dtype):
            yield codes


def refuse_quantized(view: View, names: Mapping[str, Sequence[str]], key: str, why: str, otherwise: str = "") -> None:
    """Refuse quantized weights of which any part is among the tensors of these names, by alias. `why`: what the step
    is for. `otherwise`: what else may be done."""
    found = {alias: next(_find_parts(view, alias, own), None) for alias, own in names.items()}
    codes = {alias: first for alias, first in found.items() if first is not None}
    if codes:
        alias, first = next(iter(codes.items()))
        aval = view.fetch(alias, first.name, key).aval
        message = f"'{alias}::{first.name}' holds codes, {aval}, whose scales are in '{first.scales}'"
        steps = " and ".join(f"`dequantize: {{target: '{each}::.*', to: float32}}`" for each in codes)
        raise Refusal("scale-ignored", f"{message}: {why}", key=key,
                      hint=f"Make floats of it before: {steps}.{otherwise}")  # fmt: skip


def _find_parts(view: View, alias: str, names: Iterable[str]) -> Iterator[Codes]:
    """The quantized weights of whose parts any are among some tensors."""
    known = set(view.names(alias))
    for name in names:
        codes = find_codes(name, known.__contains__) or find_codes_beside(name, known.__contains__)
        if codes is not None and fits(codes, view.fetch(alias, codes.name, "target").aval.dtype):
            yield codes


def read_settings(view: View, alias: str) -> Mapping[str, object] | None:
    """The config of an alias; None if it has none."""
    found = view.config(alias, "target")
    return found[1] if found is not None and isinstance(found[1], Mapping) else None


def zero_offset_of(view: View, alias: str, given: int | None) -> int:
    """What is added to the stored zeros of GPTQ: files of version 1, the common ones, store them less one."""
    if given is not None:
        return given
    settings = (read_settings(view, alias) or {}).get(CONFIG_KEY)
    return 0 if isinstance(settings, Mapping) and settings.get("checkpoint_format") == "gptq_v2" else 1


_READ_AWQ = ("gemm", "exllama", "exllamav2", "ipex")
"""What configs call the layout of AWQ that is read here, and kernels that take it as well."""


def check_awq(view: View, alias: str, name: str, *, by_outputs: bool) -> None:
    """Refuse words of AWQ whose layout is another than that of its version GEMM: shapes do not always tell it from that
    of GPTQ. `by_outputs`: whether their shape is that of words of eight outputs."""
    settings = (read_settings(view, alias) or {}).get(CONFIG_KEY)
    if not isinstance(settings, Mapping) or str(settings.get("quant_method")).lower() != "awq":
        return
    version = settings.get("version", settings.get("format")) or _READ_AWQ[0]
    if by_outputs and str(version).lower() in _READ_AWQ:
        return
    why = f"the config says AWQ of version '{version}', and only words of version 'gemm' are read"
    if str(version).lower() in _READ_AWQ:
        why = f"the config says AWQ, but the shape of '{name}' is not that of its version '{version}'"
    raise Refusal("codes-unknown", why, key="target", hint="Let AutoAWQ save the model as version 'gemm', or narrow "
                  "the pattern, so that it leaves such tensors out.")  # fmt: skip


def config_of_floats(view: View, alias: str, made: Sequence[str], rest: Sequence[str]) -> Iterator[Edit]:
    """The edit of a config that names how weights are quantized: without it once none is, else with the modules that
    no longer are."""
    config = read_settings(view, alias)
    if config is None or not isinstance(settings := config.get(CONFIG_KEY), Mapping):
        return
    if not rest:
        yield SetConfig(alias, describe_floats(config))
        return
    key = key_of_floats(settings)
    known = settings.get(key)
    left_out = [*(known if isinstance(known, list) else ()), *(n.removesuffix(".weight") for n in made)]
    yield SetConfig(alias, {**config, CONFIG_KEY: {**settings, key: list(dict.fromkeys(left_out))}})


def modules_left(view: View, target: Ref) -> list[str]:
    """The modules whose matrices a step that quantizes leaves as they are."""
    taken, known = set(view.match(target)), set(view.names(target.alias))
    names = (n for n in view.names(target.alias) if n.endswith(".weight") and n not in taken)
    return [
        n.removesuffix(".weight")
        for n in names
        if len(view.fetch(target.alias, n).aval.shape) > 1 and find_codes(n, known.__contains__) is None
    ]


def config_of_codes(wanted: CodeRequest, left: list[str]) -> dict[str, object]:
    """How loaders are told of weights that are quantized so, and of the modules that are not."""
    to, per, block = wanted.to, wanted.per, wanted.block
    if to == "gptq":
        return {"quant_method": "gptq", "bits": 4, "group_size": wanted.group, "desc_act": False, "sym": False,
                "checkpoint_format": "gptq", "modules_to_not_convert": left}  # fmt: skip
    if to == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": wanted.group, "zero_point": True, "version": "gemm",
                "modules_to_not_convert": left}  # fmt: skip
    if to == "mxfp4":
        return {"quant_method": "mxfp4", "modules_to_not_convert": left}
    if per == "block" and to != "int8":
        return {"quant_method": "fp8", "fmt": to.split("_")[1].removesuffix("fn"), "activation_scheme": "dynamic",
                "weight_block_size": list(block), "modules_to_not_convert": left}  # fmt: skip
    kind, bits = ("int", 8) if to == "int8" else ("float", 8)
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": per, "dynamic": False}
    weights |= {"block_structure": list(block)} if per == "block" else {}
    layout = "int-quantized" if kind == "int" else "float-quantized"
    group = {"targets": ["Linear"], "weights": weights, "format": layout}
    return {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": left}  # fmt: skip


_LEFT = ("modules_to_not_convert", "ignore")


def config_with(view: View, target: Ref, settings: dict[str, object]) -> Iterator[Edit]:
    """The edit of the config that says how weights are quantized. Raises Refusal where others already are, otherwise:
    one config says one way."""
    config = read_settings(view, target.alias)
    if config is None:
        return
    taken, old = set(view.match(target)), config.get(CONFIG_KEY)
    same = isinstance(old, Mapping) and {**old, **{key: 0 for key in _LEFT}} == {
        **settings, **{key: 0 for key in _LEFT}
    }  # fmt: skip
    if isinstance(old, Mapping) and not same:
        rest = next(find_quantized(view, target.alias, (n for n in view.names(target.alias) if n not in taken)), None)
        if rest is not None:
            hint = "Quantize all in the same way, or make floats of the others before: `dequantize`."
            message = f"'{rest.name}' is quantized already, otherwise than this step would say in the config"
            raise Refusal("codes-unknown", message, key="to", hint=hint)
    yield SetConfig(target.alias, {**config, CONFIG_KEY: settings})
