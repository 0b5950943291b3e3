"""Tiny models to merge, configurations of merges, and what NumPy says comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import yaml

from tests.checkpoints import normal, write
from tests.merging import oracles as by


class Size(NamedTuple):
    """The shapes of a Llama."""

    layers: int
    width: int
    inner: int
    words: int
    heads: int


TINY = Size(4, 16, 24, 32, 2)
GPT2 = Size(1, 768, 3072, 1000, 12)
"""A layer of the size of GPT-2's, and fewer words."""
LAYERS, WIDTH, INNER, WORDS, _ = TINY
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": WORDS,
    "max_position_embeddings": 32, "tie_word_embeddings": False, "dtype": "float32",
}  # fmt: skip

Tensors = dict[str, np.ndarray]
Models = Mapping[str, Tensors]
"""Tensors in float64, by the letter of the model."""


def shapes(layers: int = LAYERS, size: Size = TINY) -> dict[str, tuple[int, ...]]:
    """The tensors of a tiny Llama, or of one of another size."""
    _, width, inner, words, _ = size
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (words, width), "model.norm.weight": (width,), "lm_head.weight": (words, width)
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
    layer |= {f"mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")} | {
        "mlp.down_proj.weight": (width, inner), "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    return outside | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def put_models(folder: Path, dtype: str | Mapping[str, str] = "float32", size: Size = TINY, **config: Any) -> Models:
    """Models `a`, `b` and `c`, as folders; yields what they hold."""
    held = {}
    if size != TINY:
        config = {"hidden_size": size.width, "intermediate_size": size.inner, "num_hidden_layers": size.layers,
                  "num_attention_heads": size.heads, "num_key_value_heads": size.heads, "vocab_size": size.words,
                  **config}  # fmt: skip
    for seed, letter in enumerate("abc"):
        own = dtype if isinstance(dtype, str) else dtype[letter]
        stored = np.dtype(getattr(ml_dtypes, own, own))
        tensors = {name: normal(shape, seed=97 * seed + at).astype(stored) for at, (name, shape) in
                   enumerate(shapes(size.layers, size).items())}  # fmt: skip
        (folder / letter).mkdir()
        write(folder / letter / "model.safetensors", tensors, {"format": "pt"})
        (folder / letter / "config.json").write_text(json.dumps({**CONFIG, "dtype": own, **config}))
        held[letter] = {name: x.astype(np.float64) for name, x in tensors.items()}
    return held


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


def in_layer(name: str, layer: int) -> str:
    _, _, _, rest = name.split(".", 3)
    return f"model.layers.{layer}.{rest}"


class Case(NamedTuple):
    """A configuration, and the tensors that it gives."""

    config: Mapping[str, Any]
    result: Callable[[Models], Tensors]
    layers: int = LAYERS


def models(**weights: Any) -> list[dict[str, Any]]:
    """The `models` of a configuration, each with a weight (None: with none)."""
    return [{"model": m} | ({} if w is None else {"parameters": {"weight": w}}) for m, w in weights.items()]


def each(fn: Callable[..., np.ndarray], *letters: str) -> Callable[[Models], Tensors]:
    """Tensor by tensor, `fn(name, *values)`."""
    return lambda held: {name: fn(name, *(held[m][name] for m in letters)) for name in held["a"]}


def _by_layer(first: float, last: float) -> Callable[[str], float]:
    return lambda name: first + (last - first) * (layer_of(name) or 0) / (LAYERS - 1)


def _filtered(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w = 0.8 if "self_attn" in name else 0.25
    return w * a + (1 - w) * b


def _spread(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w = _by_layer(0, 1)(name)
    u = _by_layer(2, 5)(name) if "mlp" in name else 1
    return (w * a + u * b) / (w + u)


def _tasks(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    w = _by_layer(0.1, 0.7)(name) if "mlp" in name else 0.3
    return a + 0.7 * (w * (b - a) + 0.9 * (c - a)) / (w + 0.9)


def _stacked(held: Models) -> Tensors:
    out = {"model.embed_tokens.weight": held["a"]["model.embed_tokens.weight"]}
    out |= {name: held["b"][name] for name in ("model.norm.weight", "lm_head.weight")}
    places = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for at, (letter, layer) in enumerate(places):
        for name, x in held[letter].items():
            if layer_of(name) == layer:
                out[in_layer(name, at)] = 0 * x if letter == "b" and ("o_proj" in name or "down" in name) else x
    return out


def _sliced(held: Models) -> Tensors:
    a, b, c = (held[m] for m in "abc")
    out = {}
    for name, x in a.items():
        match layer_of(name):
            case None if "embed" in name:
                out[name] = (0.2 * x + 0.3 * b[name]) / 0.5
            case None:
                out[name] = (0.5 * c[name] + b[name]) / 1.5
            case 0 | 1 as layer:
                w = 0.2 if layer == 0 else 0.8
                out[name] = (w * x + 0.3 * b[in_layer(name, layer + 1)]) / (w + 0.3)
        if (layer := layer_of(name)) in (1, 2, 3):
            w = 0.1 if "self_attn" in name else 1
            out[in_layer(name, layer + 1)] = (0.5 * c[name] + w * b[name]) / (0.5 + w)
    return out


def _uneven(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    layer = layer_of(name)
    return (a + b) * ((0.5 if "embed" in name else 2) if layer is None else (0.5, 1, 2, 3)[layer])


def _of_layers(
    held: Models, of_layer: Callable[[int, str], np.ndarray], layers: int, outside: Callable[[str], np.ndarray]
) -> Tensors:
    """What `of_layer(layer, name in layer 0)` gives for each layer, and `outside(name)` for what is in none."""
    found = {n: outside(n) for n in held["a"] if layer_of(n) is None}
    first = [n for n in held["a"] if layer_of(n) == 0]
    return found | {in_layer(n, at): of_layer(at, n) for n in first for at in range(layers)}


def _slerped(held: Models) -> Tensors:
    def of_layer(at: int, name: str) -> np.ndarray:
        if at < 3:
            t = at / 2 if "self_attn" in name else 0.4
            return by.slerp(None, [held["a"][in_layer(name, at)], held["b"][in_layer(name, at + 1)]], t)
        pair = [held["a"][in_layer(name, at - 1)], held["c"][in_layer(name, at - 3)]]
        return by.slerp(None, pair, (0.1, 0.9)[at - 3])

    def outside(name: str) -> np.ndarray:
        other, t = ("b", 0.4) if "embed" in name else ("c", 0.1)
        return by.slerp(None, [held["a"][name], held[other][name]], t)

    return _of_layers(held, of_layer, 5, outside)


def _trimmed(held: Models) -> Tensors:
    def tied(a: np.ndarray, b: np.ndarray, c: np.ndarray, weight: float) -> np.ndarray:
        return by.add(a, by.deltas(a, [b, c]), (weight, 0.3), vote=True, normalize=True)

    def of_layer(at: int, name: str) -> np.ndarray:
        a, b, c = (held[m] for m in "abc")
        if at >= 2:
            return a[in_layer(name, at - 1)]
        return tied(a[in_layer(name, at)], b[in_layer(name, at)], c[in_layer(name, at + 2)], (0.2, 0.8)[at])

    def outside(name: str) -> np.ndarray:
        a, b, c = (held[m][name] for m in "abc")
        return tied(a, b, c, 0.2) if "embed" in name else a

    return _of_layers(held, of_layer, 5, outside)


def _one_layer_weighed(held: Models) -> Tensors:
    a, b = held["a"], held["b"]

    def of_layer(at: int, name: str) -> np.ndarray:
        if at == 0:
            return a[name]
        x, y, w = a[in_layer(name, at)], b[in_layer(name, at)], (0.25, 0.75)[at - 1]
        return (w * x + 0.5 * y) / (w + 0.5)

    def outside(name: str) -> np.ndarray:
        return b[name] if "embed" in name else (0.25 * a[name] + 0.5 * b[name]) / 0.75

    return _of_layers(held, of_layer, 3, outside)


def _one_layer_slerped(held: Models) -> Tensors:
    a, b, c = (held[m] for m in "abc")

    def of_layer(at: int, name: str) -> np.ndarray:
        if at == 0:
            return by.slerp(None, [a[name], b[in_layer(name, 1)]], 0.8)
        return by.slerp(None, [a[in_layer(name, 1)], c[in_layer(name, 3)]], 0.4)

    def outside(name: str) -> np.ndarray:
        return by.slerp(None, [a[name], b[name]], 0.2) if "embed" in name else by.slerp(None, [a[name], c[name]], 0.4)

    return _of_layers(held, of_layer, 2, outside)


def _one_layer_scaled(held: Models) -> Tensors:
    a, b = held["a"], held["b"]
    return _of_layers(held, lambda at, n: b[in_layer(n, at)] if at else 0.7 * a[n], 2,
                      lambda n: 0.3 * a[n] if "embed" in n else b[n])  # fmt: skip


CASES: Mapping[str, Case] = {
    "gradients of one layer": Case(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 1], "parameters": {"weight": [0, 1]}},
                        {"model": "b", "layer_range": [2, 3], "parameters": {"weight": [1, 0]}},
                    ]
                },
                {
                    "sources": [
                        {"model": "a", "layer_range": [1, 3], "parameters": {"weight": [0.25, 0.75]}},
                        {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 0.5}},
                    ]
                },
            ],
        },
        _one_layer_weighed,
        layers=3,
    ),
    "slerp of one layer": Case(
        {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [
                {
                    "sources": [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [1, 2]}],
                    "parameters": {"t": [0.2, 0.8]},
                },
                {
                    "sources": [{"model": "a", "layer_range": [1, 2]}, {"model": "c", "layer_range": [3, 4]}],
                    "parameters": {"t": 0.4},
                },
            ],
        },
        _one_layer_slerped,
        layers=2,
    ),
    "scales of one layer": Case(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 1], "parameters": {"scale": [0.3, 0.7]}}]},
                {"sources": [{"model": "b", "layer_range": [1, 2]}]},
            ],
        },
        _one_layer_scaled,
        layers=2,
    ),
    "linear": Case(
        {"merge_method": "linear", "models": models(a=0.3, b=0.7)}, each(lambda n, a, b: 0.3 * a + 0.7 * b, *"ab")
    ),
    "normalized": Case(
        {"merge_method": "linear", "models": models(a=1, b=2, c=0.5)},
        each(lambda n, a, b, c: (a + 2 * b + 0.5 * c) / 3.5, *"abc"),
    ),
    "not normalized": Case(
        {"merge_method": "linear", "models": models(a=1, b=-0.5), "parameters": {"normalize": False}},
        each(lambda n, a, b: a - 0.5 * b, *"ab"),
    ),
    "mean": Case(
        {"merge_method": "linear", "models": models(a=None, b=None, c=None), "parameters": {"weight": 1}},
        each(lambda n, a, b, c: (a + b + c) / 3, *"abc"),
    ),
    "base that is not listed": Case(
        {
            "merge_method": "linear",
            "base_model": "c",
            "models": models(a=0.5, b=0.5),
            "parameters": {"weight": 2},
        },
        each(lambda n, a, b, c: (0.5 * a + 0.5 * b + 2 * c) / 3, *"abc"),
    ),
    "base that is not merged": Case(
        {
            "merge_method": "linear",
            "base_model": "c",
            "slices": [{"sources": [{"model": m, "layer_range": [0, 4]} for m in "ab"]}],
            "parameters": {"weight": 1},
        },
        each(lambda n, a, b: (a + b) / 2, *"ab"),
    ),
    "filters": Case(
        {
            "merge_method": "linear",
            "models": models(
                a=[{"filter": "self_attn", "value": 0.8}, {"value": 0.25}],
                b=[{"filter": "self_attn", "value": 0.2}, {"value": 0.75}],
            ),
        },
        each(_filtered, *"ab"),
    ),
    "gradients": Case(
        {"merge_method": "linear", "models": models(a=[0, 1], b=[{"filter": "mlp", "value": [2, 5]}, {"value": 1}])},
        each(_spread, *"ab"),
    ),
    "one slice over all": Case(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 4], "parameters": {"weight": 1}},
                        {"model": "b", "layer_range": [0, 4], "parameters": {"weight": 3}},
                    ]
                }
            ],
        },
        each(lambda n, a, b: (a + 3 * b) / 4, *"ab"),
    ),
    "slices": Case(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2], "parameters": {"weight": [0.2, 0.8]}},
                        {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 0.3}},
                    ]
                },
                {
                    "sources": [
                        {"model": "c", "layer_range": [1, 4], "parameters": {"weight": 0.5}},
                        {"model": "b", "layer_range": [1, 4]},
                    ],
                    "parameters": {"weight": [{"filter": "self_attn", "value": 0.1}, {"value": 1}]},
                },
            ],
        },
        _sliced,
        layers=5,
    ),
    "slices of other weights": Case(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [{"model": m, "layer_range": [2 * at, 2 * at + 2]} for m in "ab"],
                    "parameters": {"weight": [first, second]},
                }
                for at, (first, second) in enumerate([(0.5, 1), (2, 3)])
            ],
            "parameters": {"normalize": False},
        },
        each(_uneven, *"ab"),
    ),
    "task arithmetic": Case(
        {"merge_method": "task_arithmetic", "base_model": "a", "models": models(a=None, b=0.3, c=0.9)},
        each(lambda n, a, b, c: a + 0.3 * (b - a) + 0.9 * (c - a), *"abc"),
    ),
    "task arithmetic with everything": Case(
        {
            "merge_method": "task_arithmetic",
            "base_model": "a",
            "models": models(b=[{"filter": "mlp", "value": [0.1, 0.7]}], c=0.9),
            "parameters": {"weight": 0.3, "lambda": 0.7, "normalize": True},
        },
        each(_tasks, *"abc"),
    ),
    "negated task": Case(
        {"merge_method": "task_arithmetic", "base_model": "a", "models": models(b=-0.5)},
        each(lambda n, a, b: a - 0.5 * (b - a), *"ab"),
    ),
    "stacked": Case(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 3]}]},
                {
                    "sources": [
                        {
                            "model": "b",
                            "layer_range": [1, 4],
                            "parameters": {
                                "scale": [
                                    {"filter": "o_proj", "value": 0},
                                    {"filter": "down_proj", "value": 0},
                                    {"value": 1},
                                ]
                            },
                        }
                    ]
                },
            ],
        },
        _stacked,
        layers=6,
    ),
    "a model doubled by itself": Case(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 4]}]},
                {"sources": [{"model": "a", "layer_range": [0, 4]}]},
            ],
        },
        lambda held: (
            {n: x for n, x in held["a"].items()}
            | {in_layer(n, 4 + at): x for n, x in held["a"].items() if (at := layer_of(n)) is not None}
        ),
        layers=8,
    ),
    "slerp by layer": Case(
        {
            "merge_method": "slerp",
            "base_model": "b",
            "models": models(b=None, a=None),
            "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.25}]},
        },
        each(lambda n, b, a: by.slerp(None, [b, a], _by_layer(0, 1)(n) if "self_attn" in n else 0.25), *"ba"),
    ),
    "slerp from the first layer to the last": Case(
        {"merge_method": "slerp", "base_model": "a", "models": models(b=None), "parameters": {"t": [0.25, 0.75]}},
        each(lambda n, a, b: by.slerp(None, [a, b], _by_layer(0.25, 0.75)(n)), *"ab"),
    ),
    "slerp of slices that are whole models": Case(
        {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [
                {
                    "sources": [{"model": m, "layer_range": [0, LAYERS]} for m in "ab"],
                    "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}]},
                }
            ],
            "parameters": {"t": 0.25},
        },
        each(lambda n, a, b: by.slerp(None, [a, b], _by_layer(0, 1)(n) if "mlp" in n else 0.25), *"ab"),
    ),
    "slerp of slices from the first layer to the last": Case(
        {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [{"sources": [{"model": m, "layer_range": [0, LAYERS]} for m in "ab"]}],
            "parameters": {"t": [{"filter": "embed", "value": 0}, {"value": [0.25, 0.75]}]},
        },
        each(lambda n, a, b: by.slerp(None, [a, b], 0 if "embed" in n else _by_layer(0.25, 0.75)(n)), *"ab"),
    ),
    "slerp of slices": Case(
        {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [1, 4]}]},
                {
                    "sources": [{"model": "a", "layer_range": [2, 4]}, {"model": "c", "layer_range": [0, 2]}],
                    "parameters": {"t": [0.1, 0.9]},
                },
            ],
            "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.4}]},
        },
        _slerped,
        layers=5,
    ),
    "ties of slices": Case(
        {
            "merge_method": "ties",
            "base_model": "a",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2]},
                        {"model": "b", "layer_range": [0, 2], "parameters": {"weight": [0.2, 0.8]}},
                        {"model": "c", "layer_range": [2, 4], "parameters": {"weight": 0.3}},
                    ]
                },
                {"sources": [{"model": "a", "layer_range": [1, 4]}]},
            ],
        },
        _trimmed,
        layers=5,
    ),
    "ties of whole task vectors": Case(
        {"merge_method": "ties", "base_model": "a", "models": models(b=0.5, c=0.25), "parameters": {"lambda": 0.5}},
        each(lambda n, a, b, c: by.add(a, by.deltas(a, [b, c]), (0.5, 0.25), 0.5, vote=True, normalize=True), *"abc"),
    ),
    "nuslerp of rows": Case(
        {"merge_method": "nuslerp", "models": models(a=1, b=3), "parameters": {"nuslerp_flatten": False}},
        each(lambda n, a, b: by.nuslerp(None, [a, b], (1, 3), False), *"ab"),
    ),
    "model stock": Case(
        {"merge_method": "model_stock", "base_model": "a", "models": models(b=None, c=None)},
        each(lambda n, a, b, c: by.model_stock(a, [b, c]), *"abc"),
    ),
    "a model passed through": Case(
        {"merge_method": "passthrough", "models": [{"model": "a"}]}, each(lambda n, a: a, "a")
    ),
    "a model scaled": Case(
        {
            "merge_method": "passthrough",
            "models": [{"model": "a", "parameters": {"scale": [{"filter": "norm", "value": 2}]}}],
        },
        each(lambda n, a: 2 * a if "norm" in n else a, "a"),
    ),
}


def put_config(folder: Path, config: Mapping[str, Any]) -> Path:
    path = folder / "merge.yml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return path
