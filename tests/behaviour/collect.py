"""Writes `oracles/`: the trees that libraries expect of tiny models, and MaxText's own conversion of planted weights.

`python -m tests.behaviour.collect`, once the environments are there (see `homes`); the suite then needs none of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.behaviour import tiny
from tests.behaviour.homes import ask
from tests.behaviour.planted import digest, planted
from tests.checkpoints import write

ORACLES = Path(__file__).with_name("oracles")

# The layout, the tiny model, the library, and what its script must be told more.
CASES: tuple[tuple[str, str, str, str], ...] = (
    *(
        ("tunix-llama", model, "tunix", "")
        for model in ("llama", "llama-tied", "mistral", "qwen2", "qwen2-untied", "qwen3", "qwen3-untied")
    ),
    ("tunix-gemma2", "gemma2", "tunix", ""),
    ("tunix-gemma3", "gemma3", "tunix", ""),
    ("tunix-gemma3", "gemma3-mha", "tunix", ""),
    ("gemma-gemma2", "gemma2", "gemma", "transposed"),
    ("gemma-gemma2", "gemma2-wide", "gemma", "plain"),
    ("gemma-gemma3", "gemma3", "gemma", "transposed"),
    ("gemma-gemma3", "gemma3-mha", "gemma", "transposed"),
    *(
        (layout, model, "maxtext", scan)
        for layout, model in (
            ("maxtext-llama", "llama"),
            ("maxtext-llama", "llama-tied"),
            ("maxtext-qwen3", "qwen2"),
            ("maxtext-qwen3", "qwen2-untied"),
            ("maxtext-qwen3", "qwen3"),
            ("maxtext-qwen3", "qwen3-untied"),
            ("maxtext-gemma2", "gemma2"),
            ("maxtext-gemma3", "gemma3"),
            ("maxtext-mixtral", "mixtral"),
            ("maxtext-qwen3moe", "qwen3_moe"),
            ("maxtext-olmo3", "olmo3"),
        )
        for scan in ("scan", "unscanned")
    ),
)


def oracle(layout: str, model: str, library: str, more: str) -> dict[str, Any]:
    """What a library says of a tiny model."""
    with TemporaryDirectory() as folder:
        config, out = Path(folder, "config.json"), Path(folder, "tree.json")
        tiny.config(model).to_json_file(config, use_diff=False)
        words = [str(config), more] if more else [str(config)]
        ask(library, "tree", *words, str(out))
        said = {
            "layout": layout,
            "config": _needed(json.loads(config.read_text())),
            "tree": json.loads(out.read_text()),
        }
        if library == "maxtext":
            source, made = Path(folder, "hf.safetensors"), Path(folder, "made.npz")
            said["scan"] = more == "scan"
            said["hf"] = shapes = {name: list(x.shape) for name, x in tiny.tensors(model).items()}
            write(source, {name: planted(name, shape) for name, shape in shapes.items()})
            ask("maxtext", "tables", *words, str(source), str(made))
            with np.load(made) as arrays:
                said["digests"] = {name: digest(arrays[name]) for name in arrays.files}
    return said


def _needed(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if isinstance(v, (int, str)) and k != "transformers_version"}


def collected() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every oracle with the name of its file."""
    for layout, model, library, more in CASES:
        yield "-".join(filter(None, (layout, model, more))), oracle(layout, model, library, more)


def main() -> None:
    """Writes them all."""
    ORACLES.mkdir(exist_ok=True)
    for name, said in collected():
        (ORACLES / f"{name}.json").write_text(json.dumps(said, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
