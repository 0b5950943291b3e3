"""Mistakes with adapters, what their hints say to do, and what must come out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from tests import checkpoints
from tests.hints.cases import Case, Mend, Plan, add, changed, inserted, quoted, step
from tests.hints.cases_ops import put, range_of, steps

F32 = np.float32
BASE = {"h.w.weight": np.arange(9, dtype=F32).reshape(3, 3), "h.n.weight": np.ones(2, F32)}
ONE = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]], F32)
TUNED = {**BASE, "h.w.weight": BASE["h.w.weight"] + ONE}
DOWN, UP = np.array([[2, 0, 0]], F32), np.array([[2], [0], [0]], F32)
LORA = {"h.w.lora_A.weight": DOWN, "h.w.lora_B.weight": UP}
FACTORS_OF = {name.removeprefix("h.w"): x for name, x in LORA.items()}
GONE = dict.fromkeys(BASE)
MADE = {"base_model.model.h.w.lora_A.weight": DOWN, "base_model.model.h.w.lora_B.weight": UP}
PEFT = "base_model.model."
NAMES = {"target_a": f"a::{PEFT}v.lora_A.weight", "target_b": f"a::{PEFT}v.lora_B.weight"}


def extract(**keys: Any) -> list[Any]:
    given = {"base": "a", "tuned": "b", "to": "c", "rank": 1, "method": "exact", **keys}
    return [{"lora_extract": {key: value for key, value in given.items() if value is not None}}]


def extracted(name: str, code: str, mend: Mend, b: Mapping[str, np.ndarray] = TUNED, **facts: Any) -> Case:
    keys = {key: facts.pop(key) for key in ("rank", "energy", "budget", "to", "of", "dtype", "least") if key in facts}
    made = facts.pop("made", {**GONE, **MADE})
    return Case(name, code, extract(**keys), mend, made, a=facts.pop("a", BASE), b=b,
                output={"path": "out.safetensors", "alias": "c"}, **facts)  # fmt: skip


def merged(name: str, mend: Mend, b: Mapping[str, np.ndarray], code: str = "adapter-merge", **facts: Any) -> Case:
    keys = {key: facts.pop(key) for key in ("adapters", "to", "config") if key in facts}
    made = facts.pop("made", {"h.w.weight": TUNED["h.w.weight"]})
    return Case(name, code, [{"lora_merge": {"base": "a", "adapters": "b", **keys}}], mend, made,
                a=facts.pop("a", BASE), b=b, **facts)  # fmt: skip


def resized(name: str, code: str, mend: Mend, a: Mapping[str, np.ndarray] = LORA, **facts: Any) -> Case:
    keys = {"adapter": "a", "rank": 1, **facts.pop("keys", {})}
    return Case(name, code, [{"lora_resize": keys}], mend, {}, a=a, b=facts.pop("b", LORA), **facts)


def another_base(says: str) -> Mend:
    """Take the base that the adapter was trained on."""

    def change(plan: Plan) -> None:
        plan["inputs"].append("c::right.safetensors")
        step(plan)[1]["base"] = plan["output"]["alias"] = "c"

    return changed(change, says=says)


def delete(pattern: str, says: str = "`delete`") -> Mend:
    return inserted({"delete": {"target": pattern}}, says=says)


def delete_first(plan: Plan, hint: str) -> Plan:
    """Begin with the deletion that the hint writes."""
    (text,) = (text for text in quoted(hint) if text.startswith("delete: "))
    return {**plan, "transforms": [yaml.safe_load(text), *plan["transforms"]]}


def right() -> object:
    return checkpoints.write("right.safetensors", BASE)


def whole() -> object:
    return checkpoints.write("whole.safetensors", LORA)


def use_whole(plan: Plan) -> None:
    plan["inputs"][0] = "a::whole.safetensors"


def use_models(plan: Plan) -> None:
    plan["transforms"], plan["output"]["alias"] = [], "b"


def call_weight(plan: Plan) -> None:
    plan["transforms"][:0] = [{"move": {"from": f"{alias}::h.w", "to": f"{alias}::h.w.weight"}} for alias in "ab"]


def do_first(plan: Plan, hint: str) -> Plan:
    """Do the steps `dequantize` that the hint names before all others."""
    plan["transforms"][:0] = [yaml.safe_load(text) for text in quoted(hint) if text.startswith("dequantize")]
    return plan


def set_budget(plan: Plan, hint: str) -> Plan:
    assert "give at least as many" in hint
    step(plan)[1]["budget"] = range_of(hint)[0]
    return plan


OF = put("`of: PATTERN`", of=r"a::h\.w\..*")
SCALED = {**BASE, "h.scale": np.ones(2, F32)}
ROWS = np.full((2, 3), 7, F32)
TOKENS = {f"{PEFT}h.w.token_adapter.trainable_tokens_delta": ROWS}
FULL = np.diag(np.array([4, 1, 0.25], F32))
ROOTS = np.diag(np.array([2, 1, 0.5], F32))
FACTORS = {f"{PEFT}{name}": x for name, x in LORA.items()}

CODES = {name: {"h.w.weight": own["h.w.weight"].astype(np.int8), "h.w.weight_scale": np.ones((3, 1), F32),
                "h.n.weight": own["h.n.weight"]} for name, own in (("base", BASE), ("tuned", TUNED))}  # fmt: skip
NO_SCALE = {"h.w.weight_scale": None}
KEPT = {"h.k.weight": np.ones((3, 3), np.int8), "h.k.weight_scale": np.ones((3, 1), F32)}
INTS = {name: x.astype(np.int8) for name, x in LORA.items()}
ALPHA = {"h.w.alpha": np.array(3, F32)}

ADAPTERS = [
    # out of a model
    extracted("models that are quantized", "scale-ignored", do_first, a=CODES["base"], b=CODES["tuned"],
              made={**GONE, **NO_SCALE, **MADE}),
    extracted("a model that is quantized, some of it", "scale-ignored", do_first, a=CODES["base"],
              of=r"a::h\.w\.weight", made={**GONE, **NO_SCALE, **MADE}),
    extracted("codes that are the same in both models", "scale-ignored", put("look at floats alone: `of: PATTERN`",
              of=r"a::h\.w\.weight"), a={**BASE, **KEPT}, b={**TUNED, **KEPT},
              made={**GONE, **dict.fromkeys(KEPT), **MADE}),
    extracted("the tuned model as the adapter", "alias-exists", put("Give another name to the adapter.", to="c"),
              to="b"),
    extracted("names of no model", "alias-unknown", put("Name the base: `of: 'a::PATTERN'`.", of=r"a::h\.w\..*"),
              of=r"z::h\.w\..*"),
    extracted("names that are none", "no-match", put("lists the names that it started with", of=r"a::h\.w\..*"),
              of=r"a::v\..*"),
    extracted("factors of integers", "dtype-unsupported", put("Write `dtype: bfloat16`, or leave it out", dtype=None),
              dtype="int8"),
    extracted("a bound below 0", "value-type", put("a bound of at least 0, such as `least: 0.01`", least=0.01),
              least=-1),
    extracted("no size of factors", "key-missing", add(1), rank=None),
    extracted("a share in percent", "value-type", add(0), rank=None, energy=95),
    extracted("a tensor of the tuned model alone", "unmatched", OF, b={**TUNED, "more": np.ones(2, F32)}),
    extracted("a tensor of another shape", "shapes-differ", OF, b={**TUNED, "h.n.weight": np.ones(3, F32)}),
    extracted("a parameter of no module", "adapter-extract", OF, a=SCALED, made={**GONE, "h.scale": None, **MADE},
              b={**TUNED, "h.scale": np.zeros(2, F32)}, at_run=True),
    extracted("a parameter beside every matrix", "adapter-extract", put("`of: PATTERN`", of=r"a::h\.w\.weight"),
              a={**BASE, "h.w.scale": np.ones(2, F32)}, b={**TUNED, "h.w.scale": np.zeros(2, F32)},
              made={**GONE, "h.w.scale": None, **MADE}, at_run=True),
    extracted("models that are the same", "adapter-extract", changed(use_models, says="use the models as they are"),
              b=BASE, made={}, at_run=True),
    extracted("matrices that are no weights", "adapter-extract",
              changed(call_weight, says="rename others in both models"),
              a={"h.w": BASE["h.w.weight"]}, b={"h.w": TUNED["h.w.weight"]}, made={"h.w": None, **MADE}, at_run=True),
    extracted("matrices that LoRA leaves alone", "adapter-extract",
              changed(use_models, says="use the models as they are"), a={"h.wpe.weight": BASE["h.w.weight"]},
              b={"h.wpe.weight": TUNED["h.w.weight"]}, made={"h.wpe.weight": TUNED["h.w.weight"]}, at_run=True),
    extracted("an energy for which nothing is of low rank", "adapter-extract",
              put("name a rank: `rank: 16`", rank=16, energy=None), rank=None, energy=1,
              b={**BASE, "h.w.weight": FULL}, a={**BASE, "h.w.weight": np.zeros((3, 3), F32)},
              made={**GONE, **{name: ROOTS for name in MADE}}, at_run=True),
    extracted("a budget that is too small", "adapter-extract", set_budget, rank=None, budget=1, at_run=True),
    # into a model
    merged("a base that is quantized", do_first, LORA, "scale-ignored", a=CODES["base"],
           made={"h.w.weight": TUNED["h.w.weight"], **NO_SCALE}),
    merged("factors of integers, merged", inserted({"cast_": {"target": "b::.*", "to": "float32"}}, says="Cast first"),
           INTS, "dtype-unsupported"),
    merged("what variants have beside factors", steps("Merge it by the program that it is for, and start from its"),
           {**LORA, "h.w.dora_scale": np.ones(1, F32)}, made={}),
    merged("what variants that PEFT knows have beside factors", steps("Merge it by `peft`, and start from its result."),
           {f"{PEFT}h.w.lora_diag": np.ones(1, F32)}, made={}),
    merged("two modules that are one of the base", delete_first,
           {**{f"m.{name}": x for name, x in LORA.items()}, **{f"m_2.{name}": 2 * x for name, x in LORA.items()}}),
    merged("two names of one factor", delete_first, {**LORA, "h.w.lora_down.weight": DOWN, "h.w.lora_up.weight": UP}),
    merged("modules of another model", delete_first,
           {f"{stem}{name}": x for stem in ("unet.h.w", "text_encoder.k") for name, x in FACTORS_OF.items()}),
    merged("a variant of LoRA", steps("Merge it by `peft`, and start from its result."), LORA,
           config={"kasa_config": {}}, made={}),
    merged("an alpha beside those of tensors", delete("b::.*alpha", "`delete` these tensors before"), {**LORA, **ALPHA},
           "adapter-config", config={"lora_alpha": 1}),
    merged("an alpha beside those of tensors, left out", put("Leave it out", config=None), {**LORA, **ALPHA},
           "adapter-config", config={"lora_alpha": 1}, made={"h.w.weight": BASE["h.w.weight"] + 3 * ONE}),
    merged("a rank that the factors do not have", put('`config: {"r": 1}`', config={"r": 1, "lora_alpha": 1}), LORA,
           "adapter-config", config={"r": 2, "lora_alpha": 1}),
    merged("DoRA without magnitudes", put("`config: {use_dora: false}`", config={"use_dora": False, "lora_alpha": 1}),
           LORA, "adapter-config", config={"use_dora": True, "lora_alpha": 1}),
    merged("a module that the config does not name",
           put('`config: {"target_modules": ["k", "h.w"]}`', config={"target_modules": ["k", "h.w"], "lora_alpha": 1}),
           LORA, "config-differs", config={"target_modules": ["k"], "lora_alpha": 1}, note=True),
    merged("a tensor that is none of an adapter", delete("b::.*hada"), {**LORA, "h.w.hada": DOWN}),
    merged("a factor alone", delete("b::h.z.*"), {**LORA, "h.z.lora_A.weight": DOWN}),
    merged("a module that may be several",
           inserted({"move": {"from": r"b::w\.(.*)", "to": r"b::h.w.\1"}}, says="Rename the tensors of the adapter"),
           {name.removeprefix("h."): x for name, x in LORA.items()}, a={**BASE, "i.w.weight": DOWN}),
    merged("a tensor of another shape, weighed", put("takes one adapter, of weight 1", adapters={"b": 1}),
           {f"{PEFT}h.n.weight": np.zeros(5, F32)}, adapters={"b": 0.5}, config={"lora_alpha": 1},
           made={"h.n.weight": np.zeros(5, F32)}),
    merged("factors that were taken out of the base", put("Convert it by `peft`", config={"lora_alpha": 1}), FACTORS,
           config={"init_lora_weights": "pissa", "lora_alpha": 1}),
    merged("another kind of adapter", steps("Merge it by `peft`, and start from its result."), FACTORS,
           config={"peft_type": "IA3"}, made={}),
    merged("an alias that is there", put("leave `to` out", to=None), LORA, "alias-exists", to="b"),
    merged("a base of other shapes", another_base("Is it the base that the adapter was trained on?"), LORA,
           "shapes-differ", a={"h.w.weight": np.ones((2, 2), F32)}, base=BASE, world=right),
    merged("a base of other names", another_base("`brainsurgery-jax inspect` lists its names"), LORA,
           a={"k.v.weight": np.ones((3, 3), F32)}, base=BASE, world=right),
    merged("a misspelt setting", put("Keys that count here: lora_alpha", config={"lora_alpha": 1}), FACTORS,
           "adapter-config", config={"lora_alpa": 1}),
    merged("an alpha that is no number", put("Write `config: {lora_alpha: 16}`", config={"lora_alpha": 1}), FACTORS,
           "adapter-config", config={"lora_alpha": "1"}),
    merged("an adapter without its config", add(0), FACTORS,
           made={"h.w.weight": BASE["h.w.weight"] + 16 * ONE}),
    merged("a bias that has no place", delete("b::.*bias"), {**LORA, "h.w.lora_B.bias": np.ones(3, F32)}),
    merged("tokens whose places are not known",
           put("as many `trainable_token_indices`", config={"trainable_token_indices": [0, 2]}), TOKENS,
           config={"trainable_token_indices": [0]},
           made={"h.w.weight": np.array([[7, 7, 7], [3, 4, 5], [7, 7, 7]], F32)}),
    # at another rank
    resized("an adapter without its config, resized", "adapter-merge", add(0), FACTORS),
    resized("another kind of adapter, resized", "adapter-merge",
            steps("Merge it by `peft`, and start from its result."), keys={"config": {"peft_type": "IA3"}}),
    resized("factors that were taken out of the base, resized", "adapter-merge", steps("or merge it by `peft`"),
            keys={"config": {"init_lora_weights": "pissa"}}),
    resized("a rank that the factors do not have, resized", "adapter-config",
            put('`config: {"r": 1}`', config={"r": 1, "lora_alpha": 1}), keys={"config": {"r": 2, "lora_alpha": 1}}),
    resized("an alpha that is no number, resized", "adapter-config",
            put("Write `config: {lora_alpha: 16}`", config={"lora_alpha": 16}), keys={"config": {"lora_alpha": None}}),
    resized("an alias for the result that is there", "alias-exists", put("leave `to` out", to=None), keys={"to": "b"}),
    resized("an alias without factors", "adapter-merge", put("Name the alias of an adapter.", adapter="a"),
            b={f"{PEFT}n.weight": np.ones(2, F32)}, keys={"adapter": "b"}),
    resized("factors of two products", "shapes-differ", changed(use_whole, says="Use the adapter as it was saved."),
            a={**LORA, "h.w.lora_B.weight": np.ones((3, 2), F32)}, base=LORA, world=whole),
    # written for PEFT
    Case("a setting of another type", "adapter-config", [],
         changed(lambda p: p["output"]["options"]["config"].__setitem__("lora_alpha", 1), says="as PEFT's LoraConfig"),
         {}, a=FACTORS, output={"path": "out/", "alias": "a", "format": "peft",
                                "options": {"config": {"lora_alpha": "one"}}}),
    Case("a factor alone, written for PEFT", "adapter-config", [], delete("a::.*z.*", "delete this one"),
         {f"{PEFT}z.lora_A.weight": None}, a={**FACTORS, f"{PEFT}z.lora_A.weight": DOWN},
         output={"path": "out/", "alias": "a", "format": "peft", "options": {"config": {"lora_alpha": 1}}}),
    Case("a rank that data tell, without an alpha", "adapter-config",
         [{"phlora": {"target": "a::v", **NAMES, "rank": {"energy": 0.9}, "method": "exact"}}],
         lambda plan, hint: put("name the rank", rank=1)(with_alpha(plan), hint),
         {"v": None, NAMES["target_a"].removeprefix("a::"): DOWN, NAMES["target_b"].removeprefix("a::"): UP},
         a={"v": ONE}, output={"path": "out/", "alias": "a", "format": "peft"}),
]  # fmt: skip


def with_alpha(plan: Plan) -> Plan:
    plan["output"]["options"] = {"config": {"lora_alpha": 1}}
    return plan
