"""Convert a configuration of mergekit-moe to a plan: a Mixtral whose experts are the MLPs of several models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeGuard

from brainsurgery_jax.errors import Span
from brainsurgery_jax.importers.config_reader import FORM, UNSUPPORTED
from brainsurgery_jax.importers.imported import Imported
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, describe, get
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.version import __version__

_KEYS = ("base_model", "experts", "gate_mode", "dtype", "experts_per_token")
_OF_AN_EXPERT = ("source_model", "positive_prompts", "negative_prompts")
_DTYPES = ("float16", "bfloat16", "float32")
_BASES = ("llama", "mistral")
_MATRICES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
"""The matrices of an MLP, and their names in an expert of a Mixtral."""
_ROUTER = r"model.layers.0.block_sparse_moe.gate.weight"


class _Expert(NamedTuple):
    reference: str
    span: Span


def is_moe(root: Node | None) -> TypeGuard[Map]:
    """Whether a file is a configuration of mergekit-moe."""
    return isinstance(root, Map) and get(root, "experts") is not None and get(root, "merge_method") is None


def import_moe(root: Map, file: str) -> Imported:
    """The plan of a configuration. Raises PlanError for what plans cannot express, StoreError for unreadable models."""
    _check_keys(root, _KEYS, "configuration")
    _check_gates(root)
    base = Model.find(_text(root, "base_model"), "base", root.span)
    base.refuse_missing("config.json")
    if (kind := base.config.get("model_type")) not in _BASES:
        hint = "Write it by hand: a step `upcycle`, and `assign` for the matrices of each expert."
        raise refuse(f"the base is no Llama or Mistral, but of model_type {kind!r}", root.span, hint)
    experts = tuple(_experts(root))
    own = {expert.reference: expert.span for expert in experts}
    models = {name: Model.find(name, f"e{at}", span) for at, (name, span) in enumerate(own.items())}
    steps = [step for model in (base, *models.values()) for step in model.preparations]
    per_token = _per_token(root, len(experts))
    told = {"experts": len(experts), "per_token": per_token, "std": 1.0, "alias": "base"}
    steps.append(Substep("upcycle", told))
    steps += _experts_steps([models[expert.reference].alias for expert in experts])
    output: dict[str, object] = {"path": "merged/", "alias": "base"}
    if dtype := _dtype(root):
        steps.append(Substep("cast_", {"target": "base::.*", "to": dtype}))
        output["config"] = {"dtype" if "dtype" in base.config else "torch_dtype": dtype}
    head = f"From {file} (mergekit-moe), by brainsurgery-jax {__version__}."
    note = f"{head} The routers are random, with deviation 1: see `std` and `seed`."
    inputs = tuple(each for model in (base, *models.values()) for each in model.inputs)
    made = Imported(file, (note,), inputs, tuple(steps), output)
    made.check()
    return made


def _experts_steps(aliases: Sequence[str]) -> Iterator[Substep]:
    """Steps that put the MLP of a model in the place of each expert, which are copies of that of the base."""
    for at, alias in enumerate(aliases):
        for matrix, name in _MATRICES.items():
            to = rf"base::model.layers.\1.block_sparse_moe.experts.{at}.{name}.weight"
            yield Substep("assign", {"from": rf"{alias}::model\.layers\.(\d+)\.mlp\.{matrix}\.weight", "to": to})


def _check_keys(node: Map, keys: Sequence[str], where: str) -> None:
    for key, _ in node.entries:
        if key.text not in keys:
            message = f"the key '{key.text}' of a mergekit-moe {where} cannot be imported"
            raise refuse(message, key.span, f"Supported: {', '.join(keys)}.", UNSUPPORTED)


def _check_gates(root: Map) -> None:
    """Refuse routers that depend on what a model computes of prompts."""
    node = get(root, "gate_mode")
    mode = node.value if isinstance(node, Scalar) else "hidden"
    if mode == "random":
        return
    message = f"routers of gate_mode '{mode}' are made of prompts, which a plan does not read"
    hint = ("Import with `gate_mode: random`. If you have routers `[experts, width]` in a checkpoint, add it as an "
            f"input `r::PATH` and write `router: r` in the step `upcycle`; they are named `{_ROUTER}`.")  # fmt: skip
    raise refuse(message, root.span if node is None else node.span, hint)


def _experts(root: Map) -> Iterator[_Expert]:
    node = get(root, "experts")
    if not isinstance(node, List) or len(node.items) < 2:
        raise refuse("experts: expected a list of two models or more", root.span, code=FORM)
    for item in node.items:
        if not isinstance(item, Map):
            raise refuse(f"experts: expected a mapping, got {describe(item)}", item.span, code=FORM)
        _check_keys(item, _OF_AN_EXPERT, "expert")
        yield _Expert(_text(item, "source_model"), item.span)


def _text(node: Map, key: str) -> str:
    found = get(node, key)
    if not isinstance(found, Scalar) or not isinstance(found.value, str):
        got = "nothing" if found is None else describe(found)
        raise refuse(f"{key}: expected the path of a model, got {got}", node.span, code=FORM)
    return found.value


def _per_token(root: Map, count: int) -> int:
    node = get(root, "experts_per_token")
    match node:
        case None:
            return 2
        case Scalar(value=int(number)) if 1 <= number <= count:
            return number
    raise refuse(f"experts_per_token: expected a number from 1 to {count}, got {describe(node)}", node.span, code=FORM)


def _dtype(root: Map) -> str | None:
    node = get(root, "dtype")
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return None
    if isinstance(node, Scalar) and node.value in _DTYPES:
        return str(node.value)
    raise refuse(f"dtype: expected one of {', '.join(_DTYPES)}, got {describe(node)}", node.span, code=FORM)
