"""What each recipe runs on in the tests: a small checkpoint of the kind that it is for, and where it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from tests.checkpoints import normal, read, write
from tests.plans import models
from tests.plans.test_edits import EDITS
from tests.plans.test_worked_examples import EXAMPLES

Settings = Mapping[str, Any]
Inputs = Callable[[Path], Settings]


def _example(settings: Inputs, out: str) -> Inputs:
    return lambda folder: {**settings(folder), "out": folder / f"plan-{out}"}


def _merged(*names: str) -> Inputs:
    """Models with the same tensors; of several in a list under `models`."""
    shapes = {"embed.weight": (6, 4), "layers.0.attn.weight": (4, 4), "layers.1.mlp.weight": (8, 4), "norm": (4,)}

    def made(folder: Path) -> Settings:
        paths = {
            name: str(write(folder / f"{name}.safetensors", {k: normal(s, seed=9 * at + i) ** 2 for i, (k, s) in
                                                             enumerate(shapes.items())}))
            for at, name in enumerate(names)
        }  # fmt: skip
        several = [path for name, path in paths.items() if name.startswith("model")]
        single = {name: path for name, path in paths.items() if not name.startswith("model")}
        return {**single, **({"models": several} if several else {}), "out": folder / "out.safetensors"}

    return made


def _checked(folder: Path) -> Settings:
    before = models.gpt2(folder)
    from brainsurgery_jax import load

    load("recipe:prefix-rewrite", model=str(before), out=str(folder / "after.safetensors")).run(durable=False)
    return {"before": before, "after": folder / "after.safetensors"}


def _minilm(folder: Path) -> Settings:
    """A BERT of one layer as wide as the recipe wants it, all matrices zero but for a diagonal."""
    wide, long = 384, 1536
    dense = {"attention.output": (wide, wide), "intermediate": (long, wide), "output": (wide, long)}
    state = {"embeddings.word_embeddings.weight": torch.randn(5, wide), "embeddings.LayerNorm.weight": torch.ones(wide),
             "embeddings.LayerNorm.bias": torch.zeros(wide)}  # fmt: skip
    for i in range(6):
        layer = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            state[f"{layer}attention.self.{name}.weight"] = torch.eye(wide)
            state[f"{layer}attention.self.{name}.bias"] = torch.zeros(wide)
        for name, shape in dense.items():
            state[f"{layer}{name}.dense.weight"] = torch.eye(*shape)
            state[f"{layer}{name}.dense.bias"] = torch.zeros(shape[0])
        for name in ("attention.output", "output"):
            state[f"{layer}{name}.LayerNorm.weight"] = torch.ones(wide)
            state[f"{layer}{name}.LayerNorm.bias"] = torch.zeros(wide)
    state |= {"pooler.dense.weight": torch.eye(wide), "pooler.dense.bias": torch.zeros(wide)}
    save_file(state, folder / "minilm.safetensors")
    return {"model": folder / "minilm.safetensors", "out": folder / "reworked", "rank": 2}


def _minilm_back(folder: Path) -> Settings:
    from brainsurgery_jax import load

    load("recipe:minilm-forward", **{k: str(v) if isinstance(v, Path) else v for k, v in _minilm(folder).items()}).run(
        durable=False
    )
    return {"model": folder / "reworked", "out": folder / "restored"}


def _gpt2(folder: Path) -> Settings:
    return {"model": models.gpt2(folder), "out": folder / "out.safetensors"}


def _gpt2_folder(folder: Path) -> Settings:
    torch.manual_seed(7)
    model = GPT2LMHeadModel(models.gpt2_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    model.transformer.save_pretrained(folder / "gpt2")
    return {"model": folder / "gpt2", "out": folder / "folded"}


def _masked(folder: Path) -> Settings:
    before = read(models.gpt2(folder))
    masks = {
        n: (normal(x.shape, seed=at) > 0).astype(x.dtype) for at, (n, x) in enumerate(before.items()) if x.ndim > 1
    }
    write(folder / "masks.safetensors", masks)
    return {**_gpt2(folder), "masks": folder / "masks.safetensors"}


def _lens(folder: Path) -> Settings:
    lens = {
        f"{i}.{part}": normal(shape, seed=i) for i in range(2) for part, shape in (("weight", (4, 4)), ("bias", (4,)))
    }
    return {"lens": write(folder / "lens.safetensors", lens), "out": folder / "out.safetensors"}


def _steered(folder: Path) -> Settings:
    concept = write(folder / "concept.safetensors", {"direction": normal((models.WIDTH,), seed=5)})
    return {**_gpt2(folder), "concept": concept, "layer": 1}


def _transplanted(folder: Path) -> Settings:
    made = _gpt2(folder)
    donor = {n: normal(x.shape, seed=at) for at, (n, x) in enumerate(read(made["model"]).items())}
    return {**made, "donor": write(folder / "donor.safetensors", donor), "of": r"h\.1\.mlp\..+"}


def _experts(folder: Path, name: str, seed: int) -> Path:
    """A mixture of two experts, of which the first is always the same."""
    path = folder / name
    path.mkdir()
    up = "layers.0.mlp.experts.{}.up_proj.weight"
    state = {up.format(0): normal((6, 4)), up.format(1): normal((6, 4), seed=seed),
             "layers.0.mlp.gate.weight": normal((2, 4), seed=seed + 1)}  # fmt: skip
    write(path / "model.safetensors", state)
    (path / "config.json").write_text('{"model_type": "olmoe", "num_experts": 2}')
    return path


def _joined(folder: Path) -> Settings:
    return {"a": _experts(folder, "a", 1), "b": _experts(folder, "b", 3), "out": folder / "out"}


def _removed(folder: Path) -> Settings:
    return {"model": models.olmoe(folder), "expert": 1, "out": folder / "out"}


def _tuned(folder: Path) -> Settings:
    base, tuned = models.llama_pair(folder)
    return {"base": base, "tuned": tuned, "rank": 4, "out": folder / "adapter"}


def _to_olmoe(folder: Path) -> Settings:
    return {"model": models.llama_pair(folder)[0], "experts": 3, "per_token": 2, "out": folder / "out"}


def _ranked(folder: Path) -> Settings:
    up = "layers.0.mlp.experts.{}.up_proj.weight"
    state = {up.format(at): normal((12, 8), seed=at) for at in range(4)} | {"norm.weight": normal((8,))}
    path = write(folder / "model.safetensors", state)
    return {"model": path, "small": "[12]", "low": 1, "high": 3, "out": folder / "out.safetensors"}


def _edited(name: str) -> Inputs:
    def made(folder: Path) -> Settings:
        _, held, settings, _ = EDITS[name]
        paths = {alias: write(folder / f"{alias}.safetensors", tensors) for alias, tensors in held.items()}
        return {**paths, **settings, "out": folder / "out.safetensors"}

    return made


INPUTS: Mapping[str, Inputs] = {
    **{name: _edited(name) for name in EDITS},
    **{each.name.replace("_", "-"): _example(each.settings, each.out) for each in EXAMPLES},
    "diff-check": _checked,
    "minilm-forward": _minilm,
    "minilm-back": _minilm_back,
    "merge-ties": _merged("base", "model1", "model2"),
    "merge-stock": _merged("base", "model1", "model2"),
    "merge-task-arithmetic": _merged("base", "model1", "model2"),
    "merge-dare": _merged("base", "model1", "model2"),
    "merge-magmax": _merged("base", "model1", "model2", "model3"),
    "magnitude-pruning": _gpt2,
    "magnitude-masks": _gpt2,
    "nm-masks": _gpt2,
    "subnetwork-mask": _masked,
    "tuned-lens": _lens,
    "fold-norms": _gpt2_folder,
    "steering": _steered,
    "transplant": _transplanted,
    "nnterp-names": _gpt2,
    "flexolmo-merge": _joined,
    "expert-removal": _removed,
    "lora-extract": _tuned,
    "olmoe": _to_olmoe,
    "flexmore": _ranked,
    "merge-slerp": _merged("a", "b"),
    "merge-fisher": _merged("a", "b", "fa", "fb"),
}
