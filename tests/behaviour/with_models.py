"""What the libraries' own models say with converted checkpoints, beside what `transformers` says with the originals.

`make behaviour` runs these: each library wants an environment of its own, and a missing one is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.behaviour import tiny
from tests.behaviour.homes import ask

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

# MaxText multiplies by a tied embedding in bfloat16 whatever dtype it is told.
BFLOAT16 = 2e-2


class Row(NamedTuple):
    """A layout, a tiny model for it, the library that runs it, and what its script must be told more."""

    layout: str
    model: str
    library: str
    more: str = ""
    within: float = 1e-4

    def __str__(self) -> str:
        return "-".join(filter(None, (self.layout, self.model, self.more)))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the layout."""
        return {"scan": self.more == "scan"} if self.library == "maxtext" else {}


ROWS = (
    *(
        Row("tunix-llama", model, "tunix")
        for model in ("llama", "llama-tied", "mistral", "qwen2", "qwen2-untied", "qwen3", "qwen3-untied")
    ),
    Row("tunix-gemma2", "gemma2", "tunix"),
    Row("tunix-gemma3", "gemma3", "tunix"),
    Row("tunix-gemma3", "gemma3-mha", "tunix"),
    Row("gemma-gemma2", "gemma2", "gemma", "transposed"),
    Row("gemma-gemma2", "gemma2-wide", "gemma", "plain"),
    Row("gemma-gemma3", "gemma3", "gemma", "transposed"),
    Row("gemma-gemma3", "gemma3-mha", "gemma", "transposed"),
    *(
        Row(layout, model, "maxtext", scan, within)
        for layout, model, within in (
            ("maxtext-llama", "llama", 1e-4),
            ("maxtext-llama", "llama-tied", BFLOAT16),
            ("maxtext-llama", "mistral", 1e-4),
            ("maxtext-qwen3", "qwen2", BFLOAT16),
            ("maxtext-qwen3", "qwen2-untied", 1e-4),
            ("maxtext-qwen3", "qwen3", BFLOAT16),
            ("maxtext-qwen3", "qwen3-untied", 1e-4),
            ("maxtext-gemma2", "gemma2", BFLOAT16),
            ("maxtext-gemma3", "gemma3", BFLOAT16),
            ("maxtext-mixtral", "mixtral", 1e-4),
            ("maxtext-qwen3moe", "qwen3_moe", 1e-4),
            ("maxtext-olmo3", "olmo3", 1e-4),
        )
        for scan in ("scan", "unscanned")
    ),
)


def difference(row: Row, folder: Path) -> float:
    """The largest difference between what the two models say."""
    source = tiny.save(row.model, folder / "hf")
    checkpoint, tokens, said = folder / "orbax", folder / "tokens.npy", folder / "said.npy"
    bs.convert(str(source), str(checkpoint), layout=row.layout, options=row.options, durable=False)
    np.save(tokens, tiny.TOKENS)
    words = ["logits", str(source / "config.json"), row.more, str(checkpoint), str(tokens), str(said)]
    ask(row.library, *filter(None, words))
    return float(np.abs(np.load(said) - tiny.logits(row.model)).max())


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_converted_model_says_what_the_original_says(row: Row, tmp_path: Path) -> None:
    found = difference(row, tmp_path)
    print(f"{row}: largest difference {found:.1e}")
    assert found <= row.within
