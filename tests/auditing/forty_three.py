"""Forty-three errors planted into worked plans and six small ones, or into what they read: by hand, one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import brainsurgery_jax as bs
from tests.checkpoints import normal, read, write
from tests.plans import recipe_inputs

PLANS = Path(__file__).resolve().parents[2] / "plans"
Settings = dict[str, Any]
Tensors = dict[str, np.ndarray]
HEAD = "inputs: ['m::${vars.model}', 'before::${vars.model}']\ntransforms:\n"
TAIL = "output: {path: '${vars.out}', alias: m}\n"
SMALL = {
    "pruned": HEAD + r"""
  - take_: {target: 'm::.+\.c_attn\.weight', dim: 1, indices: [0, 1, 3]}
  - take_: {target: 'm::.+\.c_attn\.bias', dim: 0, indices: [0, 1, 3]}
  - assert: {holds: {from: {w: 'm::(.+)\.weight', b: 'm::\1.bias'}, expr: 'w.shape[1] == b.shape[0]'}}
""" + TAIL,
    "mixed": HEAD + r"""
  - cast_: {target: 'm::.+\.[qo]_proj\.weight', to: bfloat16}
  - cast_: {target: 'm::.+\.up_proj\.weight', to: bfloat16}
  - assert: {dtype: {of: 'm::.+_proj\.weight', is: bfloat16}}
  - assert: {finite: 'm::.+'}
""" + TAIL,
    "kernel": HEAD + r"""
  - permute: {from: 'm::(.+)\.weight', to: 'm::\1.kernel', order: [1, 0]}
  - delete: {target: 'm::.+\.weight'}
  - assert: {holds: {from: {k: 'm::(.+)\.kernel', w: 'before::\1.weight'}, expr: 'k == transpose(w)'}}
""" + TAIL,
    "merge": r"""
inputs:
  - 'm::${vars.model}'
  - 'before::${vars.model}'
  - {path: '${vars.a}', alias: a, fingerprint: '${vars.a_is}'}
  - {path: '${vars.b}', alias: b, fingerprint: '${vars.b_is}'}
transforms:
  - compute: {from: {w: 'm::.+', a: 'a::\g<0>', o: 'before::\g<0>'}, expr: 'w + 0.5 * (a - o)'}
  - compute: {from: {w: 'm::.+', b: 'b::\g<0>', o: 'before::\g<0>'}, expr: 'w + 0.5 * (b - o)'}
  - assert:
      holds:
        from: {new: 'm::.+', a: 'a::\g<0>', b: 'b::\g<0>', o: 'before::\g<0>'}
        expr: 'new == (a + b) / 2'
""" + TAIL,
    "split": HEAD + r"""
  - split:
      {from: 'm::(.+)\.qkv\.weight', to: ['m::\1.part.0', 'm::\1.part.1', 'm::\1.part.2'], sizes: [6, 6, 6], dim: 0}
  - assert: {shape: {of: 'm::.+\.part\.\d', is: [6, 18]}}
""" + TAIL,
    "fuse": HEAD + r"""
  - concat: {from: ['m::(.+)\.q_proj\.weight', 'm::\1.k_proj.weight', 'm::\1.v_proj.weight'], to: 'm::\1.qkv.weight'}
  - assert: {identical: {left: 'before::(.+)\.k_proj\.weight', right: 'm::\1.qkv.weight::[6:12]'}}
""" + TAIL,
    "gateup": HEAD + r"""
  - concat: {from: ['m::(.+)\.gate_proj\.weight', 'm::\1.up_proj.weight'], to: 'm::\1.gate_up.weight'}
  - assert: {identical: {left: 'before::(.+)\.gate_proj\.weight', right: 'm::\1.gate_up.weight::[:6]'}}
""" + TAIL,
}  # fmt: skip
"""Plans too small to be recipes, with the asserts that `audit` suggests for them."""


def _square(names: tuple[str, ...], shape: tuple[int, ...] = (6, 6)) -> Tensors:
    return {f"layers.{i}.{n}.weight": normal(shape, seed=9 * i + at) for i in range(2) for at, n in enumerate(names)}


SMALL_INPUTS: Mapping[str, Tensors] = {
    "pruned": {"h.0.attn.c_attn.weight": normal((6, 4)), "h.0.attn.c_attn.bias": normal((4,))},
    "mixed": _square(("q_proj", "o_proj", "up_proj")),
    "kernel": _square(("o",)) | {"layers.0.up.weight": normal((8, 6), seed=77)},
    "merge": _square(("q", "up")),
    "split": {"layers.0.qkv.weight": normal((18, 18))},
    "fuse": _square(("q_proj", "k_proj", "v_proj")),
    "gateup": _square(("gate_proj", "up_proj")),
}


def _narrow(folder: Path) -> Settings:
    model = next(Path(recipe_inputs.INPUTS["head-pruning"](folder)["model"]).glob("*.safetensors"))
    return {"model": model, "out": folder / "out.safetensors"}


def _identified(settings: Mapping[str, Any], key: str) -> Settings:
    return {**settings, "fingerprint": bs.fingerprint(str(settings[key]))}


def _settings(plan: str, folder: Path) -> Settings:
    """The settings of the right plan, with its inputs in a folder."""
    match plan:
        case "bulk_regex":
            return _identified(_narrow(folder), "model")
        case "surgery_validated":
            return _identified(_narrow(folder), "model") | {"layer": 5, "first": 2, "last": 4}
        case "prefix_rewrite":
            return _narrow(folder)
        case "phlora_delta":
            return _identified(recipe_inputs.INPUTS["phlora-delta"](folder), "base")
        case _ if plan not in SMALL:
            return dict(recipe_inputs.INPUTS[plan.replace("_", "-")](folder))
    made: Settings = {"model": write(folder / "m.safetensors", SMALL_INPUTS[plan]), "out": folder / "out.safetensors"}
    for alias in ("a", "b") if plan == "merge" else ():
        tuned = {n: x + normal(x.shape, seed=ord(alias)) for n, x in SMALL_INPUTS[plan].items()}
        made[alias] = write(folder / f"{alias}.safetensors", tuned)
        made[f"{alias}_is"] = bs.fingerprint(str(made[alias]))
    return made


_FOLDER = TemporaryDirectory(prefix="forty-three-")  # removed at exit


@cache
def _originals(plan: str) -> Mapping[str, Any]:
    (folder := Path(_FOLDER.name) / plan).mkdir()
    return _settings(plan, folder)


def settings_of(plan: str, folder: Path) -> Settings:
    """The settings of the right plan, with copies of its inputs in a folder."""
    found: Settings = {}
    for key, value in _originals(plan).items():
        found[key] = str(value) if isinstance(value, Path) else value
        if isinstance(value, Path):
            copy = folder / key / value.name
            found[key] = str(copy)
            if value.is_dir():
                shutil.copytree(value, copy)
            elif value.exists():
                copy.parent.mkdir()
                shutil.copy(value, copy)
    found["out"] = str(folder / ("out.safetensors" if str(found["out"]).endswith(".safetensors") else "out"))
    return found


class Error(NamedTuple):
    """A planted error. `edits`: texts of the plan, and what is in their place; `spoil` changes inputs or settings.
    `seen`: by what, now; empty: by nothing. `before`: the same when the errors were first planted."""

    plan: str
    edits: tuple[tuple[str, str], ...] = ()
    spoil: Callable[[Settings], object] = lambda settings: None
    seen: str = "assert"
    before: str = ""


def _rewrite(key: str, edit: Callable[[Tensors], object]) -> Callable[[Settings], None]:
    """Change the tensors of an input."""

    def spoil(settings: Settings) -> None:
        path = Path(settings[key])
        file = next(path.glob("*.safetensors")) if path.is_dir() else path
        tensors = {name: x.copy() for name, x in read(file).items()}
        edit(tensors)
        write(file, tensors)

    return spoil


def _nan(tensors: Tensors) -> None:
    next(x for n, x in tensors.items() if n.endswith(("c_attn.weight", "q_proj.weight"))).flat[5] = np.nan


def _flip(tensors: Tensors) -> None:
    next(iter(tensors.values())).reshape(-1).view(np.uint8)[2] ^= 0x10


def _large(tensors: Tensors) -> None:
    next(iter(tensors.values()))[0, 0] = 1e5


def _tie(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()


def _half(tensors: Tensors) -> None:
    for name, x in list(tensors.items()):
        tensors[name] = x[tuple(slice(0, size // 2 if size % 24 == 0 else size) for size in x.shape)].copy()


def _swap(one: str, other: str) -> Callable[[Settings], None]:
    return lambda settings: settings.update({one: settings[other], other: settings[one]})


def _run_before(settings: Settings) -> None:
    """Run the plan on the model, and take what it wrote as the model."""
    bs.load(PLANS / "bulk_regex.yaml", **settings).run(durable=False)
    shutil.move(settings["out"], settings["model"])


def _cut(settings: Settings) -> None:
    file = next(Path(settings["tuned"]).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def _lose_shard(settings: Settings) -> None:
    folder = Path(settings["tuned"])
    file = next(folder.glob("*.safetensors"))
    names = list(read(file))
    file.rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {n: f"model-0000{1 + (at > 5)}-of-00002.safetensors" for at, n in
                                            enumerate(names)}}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SCALE = r"  - scale_: {target: 'h\.\d+\.attn\.c_proj\.weight', by: 0.5}" + "\n"
BIASES = r"{w: 'h\.\d+\.attn\.c_attn\.(weight|bias)'}"
TARGET = r"{target: 'h\.\d+\.attn\.c_proj"
TIE = r"  - copy: {from: 'transformer\.wte\.weight', to: lm_head.weight}" + "\n"
LAST_CAST = r"  - cast_: {target: 'moe::.+\.experts\..+', to: bfloat16}" + "\n"
FIRST_CAST = r"  - cast_: {target: 'moe::.+\.experts\..+', to: float32}" + "\n"
DROP = "  - layers: {alias: model, drop: [3, 4, 5]}\n"
PRUNED_BIAS = r"  - take_: {target: 'm::.+\.c_attn\.bias', dim: 0, indices: [0, 1, 3]}" + "\n"
DELETED = r"  - delete: {target: 'model::(.*\.)?h\.[345]\..+'}" + "\n"
MOVED = "".join(rf"  - move: {{from: 'model::(.*\.)?h\.{i}\.(.+)', to: 'model::\g<1>h.{i - 3}.\2'}}" + "\n"
                for i in range(6, 12))  # fmt: skip
LORA = "lora_extract: {base: base, tuned: tuned, to: adapter, rank: '${vars.rank}'}"
MERGED = "lora_merge: {base: base, adapters: adapter}"
PERMUTED = r"  - permute: {from: 'm::(.+)\.weight', to: 'm::\1.kernel', order: [1, 0]}" + "\n"
KERNELS_DELETED = r"  - delete: {target: 'm::.+\.weight'}" + "\n"
UP_CAST = r"  - cast_: {target: 'm::.+\.up_proj\.weight', to: bfloat16}" + "\n"
Q_CAST = r"  - cast_: {target: 'm::.+\.[qo]_proj\.weight', to: "
EXPERTS = "  - upcycle: {experts: 4, per_token: 2, to: qwen3_moe, router: zero}\n"
COPIED = (r"  - copy: {from: 'model.layers.0.self_attn.o_proj.weight', to: other}" + "\n"
          r"  - assign: {from: 'model\.(layers\.0)\.mlp\.experts\.0\.up_proj\.weight', to: "
          r"'model.\1.mlp.experts.2.gate_proj.weight'}" + "\n" + "  - delete: {target: other}\n")  # fmt: skip

ERRORS: Mapping[str, Error] = {
    "wrong name (typo in a pattern)": Error("bulk_regex", ((TARGET, TARGET.replace("attn", "atn")),), seen="check",
                                            before="check"),
    "name of another tensor that exists": Error("bulk_regex", ((TARGET, TARGET.replace("attn", "mlp")),)),
    r"pattern reaches too few (\d for \d+)": Error("bulk_regex", ((TARGET, TARGET.replace(r"\d+", r"\d")),)),
    "pattern reaches too many": Error("bulk_regex", ((TARGET, TARGET.replace("attn", ".+")),)),
    "wrong shape: input of another width": Error("surgery_validated", spoil=_rewrite("model", _half)),
    "wrong shape: two inputs differ": Error(
        "phlora_delta", spoil=_rewrite("tuned", lambda t: t.update({n: x[:2].copy() for n, x in t.items()})),
        seen="check", before="check"),
    "wrong dtype: two inputs differ, cast forgotten": Error("moe_lowrank", ((FIRST_CAST, ""),), seen="check",
                                                            before="check"),
    "wrong dtype of the output: last cast forgotten": Error("moe_lowrank", ((LAST_CAST, ""),), before="check"),
    "wrong dtype of the output: family left out of a cast": Error("mixed", ((UP_CAST, ""),)),
    "transposition forgotten, square matrices only": Error("kernel", (
        (PERMUTED, r"  - move: {from: 'm::(.+\.o)\.weight', to: 'm::\1.kernel'}" + "\n" + PERMUTED),)),
    "transposition forgotten, all matrices": Error("kernel", (
        (PERMUTED, r"  - move: {from: 'm::(.+)\.weight', to: 'm::\1.kernel'}" + "\n"), (KERNELS_DELETED, ""))),
    "off by one: layer (asserts share the variable)": Error("surgery_validated", spoil=lambda s: s.update(layer=6),
                                                            seen=""),
    "off by one: rows of a head (asserts share the variable)": Error(
        "surgery_validated", spoil=lambda s: s.update(first=4, last=6), seen=""),
    "off by one: other layers dropped": Error("drop_layers", (("[3, 4, 5]", "[4, 5, 6]"),)),
    "off by one: other head pruned": Error("head_pruning", (("heads: [2, 5]", "heads: [3, 5]"),)),
    "layers left with a hole in their numbers": Error("drop_layers", ((DROP, DELETED),)),
    "stale tied weight: head keeps the old embedding": Error(
        "prefix_rewrite", ((TIE, TIE + "  - scale_: {target: transformer.wte.weight, by: 2}\n"),)),
    "stale tied weight: one of two names edited": Error(
        "bulk_regex", ((SCALE, SCALE + "  - scale_: {target: wte.weight, by: 2}\n"),), spoil=_rewrite("model", _tie)),
    "NaN in an input that is scaled": Error("bulk_regex", spoil=_rewrite("model", _nan)),
    "NaN in an input that is factorized": Error("phlora_delta", spoil=_rewrite("tuned", _nan), seen="run",
                                                before="run"),
    "bias forgotten: scaled weight": Error("bulk_regex", ((BIASES, BIASES.replace("(weight|bias)", "weight")),)),
    "bias forgotten: pruned weight": Error("pruned", ((PRUNED_BIAS, ""),)),
    "scale applied twice in one plan": Error("bulk_regex", ((SCALE, SCALE * 2),)),
    "scale applied twice: plan run on its own output": Error("bulk_regex", spoil=_run_before),
    "scale forgotten (alpha / r)": Error(
        "lora_fold", ((MERGED, MERGED.replace("adapter}", "adapter, config: {lora_alpha: 2, r: 2}}")),),
        seen="check"),
    "wrong sign": Error("lora_fold", ((MERGED, MERGED.replace("adapters: adapter", "adapters: {adapter: -1}")),),
                        seen=""),
    "second delta against the changed base": Error("merge", (("(b - o)", "(b - w)"),)),
    "wrong axis of a split": Error("split", (("dim: 0", "dim: 1"),)),
    "parts in another order (q, v, k)": Error("fuse", (
        (r"'m::\1.k_proj.weight', 'm::\1.v_proj.weight'", r"'m::\1.v_proj.weight', 'm::\1.k_proj.weight'"),)),
    "gate and up swapped": Error("gateup", (
        (r"'m::(.+)\.gate_proj\.weight', 'm::\1.up_proj.weight'",
         r"'m::(.+)\.up_proj\.weight', 'm::\1.gate_proj.weight'"),)),
    "rank too low": Error("phlora_delta", spoil=lambda s: s.update(rank=1), seen=""),
    "wrong alias: subtracted from itself": Error("phlora_delta", ((LORA, LORA.replace("base: base", "base: tuned")),),
                                                 seen="check"),
    "inputs the wrong way round": Error("phlora_delta", spoil=_swap("base", "tuned")),
    "wrong alias written": Error("moe_lowrank", (("alias: moe,", "alias: start,"),)),
    "precision loss: difference taken in bfloat16": Error("moe_lowrank", (("to: float32", "to: bfloat16"),) * 2),
    "precision loss: by way of float16 (values beyond its range)": Error(
        "mixed", ((f"{Q_CAST}bfloat16", f"{Q_CAST}float16}}\n{Q_CAST}bfloat16"),), spoil=_rewrite("model", _large)),
    "experts not equal: one copied from another matrix": Error("moe_upcycle", ((EXPERTS, EXPERTS + COPIED),)),
    "number of layers in config.json not updated": Error("drop_layers", ((DROP, DELETED + MOVED),)),
    "shard missing": Error("phlora_delta", spoil=_lose_shard, seen="check", before="check"),
    "file cut off": Error("phlora_delta", spoil=_cut, seen="check", before="check"),
    "bytes flipped in an input (bit rot)": Error("merge", spoil=_rewrite("a", _flip)),
    "another fine-tune than meant as input": Error("merge", spoil=_swap("a", "b")),
    "output exists": Error("bulk_regex", spoil=lambda s: Path(s["out"]).write_bytes(Path(s["model"]).read_bytes()),
                           seen="check", before="check"),
}  # fmt: skip


def load_plan(plan: str, settings: Settings, edits: tuple[tuple[str, str], ...] = ()) -> bs.Plan:
    """The plan, with other texts in it."""
    text = SMALL[plan] if plan in SMALL else (PLANS / f"{plan}.yaml").read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text, f"{plan} does not say {old!r}"
        text = text.replace(old, new, 1)
    path = Path(settings["out"]).with_name("plan.yaml")
    if plan in SMALL:
        text = f"vars: {json.dumps(settings)}\n{text}"
    path.write_text(text, encoding="utf-8")
    return bs.load(path) if plan in SMALL else bs.load(path, **settings)


def try_error(name: str, folder: Path) -> str:
    """By what an error is seen: check, assert, run; or empty."""
    error = ERRORS[name]
    settings = settings_of(error.plan, folder)
    error.spoil(settings)
    try:
        plan = load_plan(error.plan, settings, error.edits)
        found = [d for d in bs.check(plan) if d.severity == "error"]
        if not found:
            plan.run(durable=False)
            return ""
    except bs.PlanError as refused:
        found, otherwise = list(refused.diagnostics), "run"
    else:
        otherwise = "check"
    return "assert" if all(d.message.startswith("assert") for d in found) else otherwise


def table() -> str:
    """What sees each error, at first and now."""
    rows = ["| error | plan | at first | now |", "|---|---|---|---|"]
    rows += [f"| {name} | {e.plan} | {e.before or 'missed'} | {e.seen or '**missed**'} |" for name, e in ERRORS.items()]
    before, now = (sum(1 for e in ERRORS.values() if seen(e)) for seen in (lambda e: e.before, lambda e: e.seen))
    return "\n".join([*rows, f"| **seen** | | {before} of {len(ERRORS)} | {now} of {len(ERRORS)} |"])
