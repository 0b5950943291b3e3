"""The merges that tests try: a step on three models of one base, and what an oracle says of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import brainsurgery_jax as bs
from tests.checkpoints import Tensors, normal, plan_of, read
from tests.merging import oracles as by

SHAPES = {"model.embed.weight": (10, 6), "layers.0.w": (6, 8), "layers.1.w": (7, 5), "conv.w": (3, 4, 5),
          "norm.weight": (8,)}  # fmt: skip


def models(dtype: Any = np.float32) -> dict[str, Tensors]:
    """A base, three models that were made of it, and statistics of these."""
    base = {name: normal(shape, seed=at) for at, (name, shape) in enumerate(SHAPES.items())}
    found = {"base": base}
    for number, alias in enumerate("abc", start=1):
        noise = {name: normal(x.shape, seed=100 * number + at) for at, (name, x) in enumerate(base.items())}
        # Some entries are as in the base: of others some are shared by models.
        found[alias] = {
            name: x + np.where(normal(x.shape, seed=7 * number + at) > -0.3, 0.3 * noise[name], 0).astype(np.float32)
            for at, (name, x) in enumerate(base.items())
        }
        found[f"fisher_{alias}"] = {name: noise[name] ** 2 for name in base}
        inputs = {name: normal((40, shape[-1]), seed=1000 * number) for name, shape in SHAPES.items()}
        found[f"gram_{alias}"] = {name: x.T @ x for name, x in inputs.items() if len(SHAPES[name]) == 2}
    return {alias: {name: x.astype(dtype) for name, x in tensors.items()} for alias, tensors in found.items()}


class MergeCase(NamedTuple):
    """Keys of a step, and the oracle of a tensor: `(name, tensors by alias) -> result`."""

    keys: Mapping[str, Any]
    oracle: Callable[[str, Mapping[str, np.ndarray]], np.ndarray]
    within: float = 2e-6


def _case(method: str, of: Sequence[str], fn: by.Oracle, *arguments: Any, within: float = 2e-6, based: bool = True,
          given: Any = None, parameters: Mapping[str, Any] | None = None, **named: Any) -> MergeCase:  # fmt: skip
    """A step whose oracle is called with the base, the models and the same arguments for every tensor."""
    keys: dict[str, Any] = {"method": method, "models": list(of) if given is None else given, "to": "merged"}
    keys |= {"base": "base"} if based else {}
    keys |= {"parameters": parameters} if parameters else {}
    oracle = lambda name, t: fn(t["base"] if based else None, [t[a] for a in of], *arguments, **named)  # noqa: E731
    return MergeCase(keys, oracle, within)


def _weights(*weights: float, **more: Any) -> dict[str, Any]:
    return {alias: {"weight": w, **more} if more else w for alias, w in zip("abc", weights, strict=False)}


W = (0.5, 0.3, 0.7)
CASES: dict[str, MergeCase] = {
    "linear": _case("linear", "abc", by.linear, W, based=False, given=_weights(*W)),
    "linear, not normalized": _case("linear", "ab", by.linear, W[:2], False, based=False, given=_weights(*W[:2]),
                                    parameters={"normalize": False}),
    "slerp": _case("slerp", "ab", by.slerp, 0.3, based=False, parameters={"t": 0.3}),
    "slerp of nearly parallel": MergeCase(
        {"method": "slerp", "base": "base", "models": ["a"], "to": "merged", "parameters": {"t": 0.8}},
        lambda name, t: by.slerp(None, [t["base"], t["a"]], 0.8)),
    "nuslerp": _case("nuslerp", "ab", by.nuslerp, (0.2, 0.6), based=False, given=_weights(0.2, 0.6)),
    "nuslerp of deltas": _case("nuslerp", "ab", by.nuslerp, (0.2, 0.6), given=_weights(0.2, 0.6)),
    "nuslerp of rows": _case("nuslerp", "ab", by.nuslerp, (1, 1), False, based=False, parameters={"flatten": False}),
    "nuslerp of columns": _case("nuslerp", "ab", by.nuslerp, (1, 1), False, True,
                                parameters={"flatten": False, "row_wise": True}),
    "multislerp": _case("multislerp", "abc", by.multislerp, W, based=False, given=_weights(*W)),
    "multislerp of deltas": _case("multislerp", "abc", by.multislerp, (1, 1, 1)),
    "karcher": _case("karcher", "abc", by.karcher, based=False, parameters={"max_iter": 100, "tol": 1e-9}),
    "task arithmetic": _case("task_arithmetic", "abc", by.task_arithmetic, W, 0.8, given=_weights(*W),
                             parameters={"lambda": 0.8}),
    "ties": _case("ties", "abc", by.ties, W, (0.4, 0.4, 0.9), given={
        "a": {"weight": 0.5, "density": 0.4}, "b": {"weight": 0.3, "density": 0.4}, "c": {"weight": 0.7, "density": 0.9}
    }),
    "dare of all": _case("dare_ties", "ab", by.add_all, W[:2], vote=True, normalize=False, given=_weights(*W[:2])),
    "della of all": _case("della_linear", "ab", by.add_all, W[:2], vote=False, normalize=False, given=_weights(*W[:2]),
                          parameters={"epsilon": 0}),
    "breadcrumbs": _case("breadcrumbs", "abc", by.breadcrumbs, W, 0.6, 0.1, given=_weights(*W),
                         parameters={"density": 0.6, "gamma": 0.1}),
    "breadcrumbs ties": _case("breadcrumbs_ties", "abc", by.breadcrumbs, W, 0.95, 0.1, vote=True, given=_weights(*W),
                              parameters={"density": 0.95, "gamma": 0.1}),
    "model stock": _case("model_stock", "abc", by.model_stock, within=2e-5),
    "model stock of rows": _case("model_stock", "abc", by.model_stock, True, parameters={"filter_wise": True},
                                 within=1e-4),
    "sce": _case("sce", "abc", by.sce, 0.4, parameters={"select_topk": 0.4}),
    "sce of all": _case("sce", "ab", by.sce, 1.0),
    "arcee fusion": _case("arcee_fusion", "a", by.arcee_fusion),
    "nearswap": _case("nearswap", "a", by.nearswap, 0.05, parameters={"t": 0.05}),
    "ram": _case("ram", "abc", by.ram, 1e-5),
    "ramplus": _case("ramplus_tl", "abc", by.ram, 0.2, 0.3, 0.5, parameters={"epsilon": 0.2, "r": 0.3, "alpha": 0.5}),
    "passthrough": _case("passthrough", "a", by.linear, (0.5,), False, based=False, parameters={"scale": 0.5}),
    "fisher": MergeCase(
        {"method": "fisher", "models": {alias: {"statistics": f"fisher_{alias}"} for alias in "ab"}, "to": "merged"},
        lambda name, t: by.fisher(None, [t["a"], t["b"]], [t["fisher_a"], t["fisher_b"]])),
    "regmean": MergeCase(
        {"method": "regmean", "models": {alias: {"statistics": f"gram_{alias}"} for alias in "ab"}, "to": "merged"},
        lambda name, t: by.regmean(None, [t["a"], t["b"]], [t["gram_a"], t["gram_b"]])
        if t["a"].ndim == 2 else by.linear(None, [t["a"], t["b"]], (1, 1))),
    "tsv": _case("tsv_m", "ab", by.tsv_m, 0.7, parameters={"lambda": 0.7}),
    "iso": _case("iso_c", "ab", by.iso_c, 0.7, parameters={"lambda": 0.7}),
    "magmax": _case("magmax", "abc", by.magmax),
    "emr": _case("emr", "abc", by.emr),
    "emr of a task": _case("emr", "abc", by.emr, 1, parameters={"task": "b"}),
    "consensus": _case("consensus", "abc", by.consensus, 0.4, 2),
    "bitdelta": _case("bitdelta", "a", by.bitdelta),
}  # fmt: skip


def merge(folder: Path, tensors: Mapping[str, Any], keys: Mapping[str, Any], **plan: Any) -> dict[str, np.ndarray]:
    """The tensors that a step makes under the alias `merged`."""
    made = plan_of(folder, tensors, {"merge": keys}, **plan)
    made["output"]["alias"] = keys["to"]
    bs.load(made).run(durable=False)
    return read(made["output"]["path"])
