"""The second table of docs/structure.md on how far results agree: `python -m tests.structure.agreement` writes it.

Tiny models of random weights, edited by a plan, loaded by `transformers`, and compared with the model before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from tests.auditing.write import between, put_between
from tests.structure.judged import TOKENS, edit, load, logits, make
from tests.structure.test_tokenizers import write_holder, write_tokenizer

PAGE, MARK = Path(__file__).resolve().parents[2] / "docs" / "structure.md", "agreement"
TIED = frozenset({"gpt2", "llama-tied", "gemma2"})


class AgreementRow(NamedTuple):
    """A step, what it keeps, the models that it is tried on, and how their logits are looked at."""

    step: str
    asked: Mapping[str, Any]
    models: Sequence[str]
    look: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    untied: bool = False
    before: Sequence[Mapping[str, Any]] = ()
    """Steps before the step."""
    tokenizer: bool = False
    """Whether an alias `other` has the same words and more, under other numbers, by which the result is asked."""


def _old_words(x: torch.Tensor) -> torch.Tensor:
    return x[..., :91]


def _probabilities(x: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(x, -1)


ROWS = (
    AgreementRow("`fold_norm`", {"fold_norm": {}},
                 ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe",
                  "phi3"),
                 untied=True),
    AgreementRow("`centre_writing`", {"centre_writing": {}}, ("gpt2", "gpt_neox", "olmo"), untied=True),
    AgreementRow("`centre_unembed` (logarithms of probabilities)", {"centre_unembed": {}},
                 ("gpt2", "gpt_neox", "llama", "mixtral", "olmo2"), _probabilities, untied=True),
    AgreementRow("`fold_value_biases`", {"fold_value_biases": {}}, ("gpt2", "gpt_neox", "llama-biased")),
    AgreementRow("`refactor_attention`", {"refactor_attention": {}}, ("gpt2",)),
    AgreementRow("`refactor_attention: {products: ov}`", {"refactor_attention": {"products": "ov"}},
                 ("gpt_neox", "llama", "llama-biased", "qwen2", "qwen3", "gemma2", "olmo2", "mixtral", "gpt_oss")),
    AgreementRow("`expert_ranks`, of full rank", {"expert_ranks": {"rank": 40}}, ("flex_olmo", "mixtral", "olmoe")),
    AgreementRow("`layers: {repeat: ..., scale_copies: 0}`, of two newer classes",
                 {"layers": {"repeat": [1], "scale_copies": 0}}, ("qwen2_moe", "gpt_oss")),
    AgreementRow("`fold_norm: {prove: true}`", {"fold_norm": {"prove": True}},
                 ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe", "phi3"),
                 untied=True),
    AgreementRow("`vocab: {multiple_of: 64}` (logits of the old words)", {"vocab": {"multiple_of": 64, "rows": "zero"}},
                 ("gpt2", "llama", "llama-tied", "qwen2", "gemma2", "mixtral", "olmo2", "gpt_neox"), _old_words),
    AgreementRow("`vocab: {tokenizer: ...}` (logits of the old words)",
                 {"vocab": {"tokenizer": "other", "alias": "model"}},
                 ("gpt2", "llama", "llama-tied", "gemma2", "mixtral", "gpt_neox"), tokenizer=True),
    AgreementRow("`standard_names`, there and back",
                 {"standard_names": {"alias": "model", "like": "original"}},
                 ("gpt2", "gpt_neox", "llama", "llama-tied", "gemma2", "gemma3", "olmo2", "mixtral", "gpt_oss"),
                 before=({"standard_names": {"alias": "model"}},)),
)  # fmt: skip

WORDS = ["<pad>", "<s>", "</s>", *(f"Ġword{n}" for n in range(88))]
"""One for each row of the models."""
OTHER_WORDS = ["Ġnew", *reversed(WORDS), "Ġnewer"]


class Agreement(NamedTuple):
    """The largest difference, and the largest value that is looked at."""

    difference: float
    largest: float


def measure(row: AgreementRow, name: str, folder: Path) -> Agreement:
    """How far a model is from what it was."""
    model = make(name, folder / "whole")
    first = [{"untie": {}}] if row.untied and name in TIED else []
    others = {"original": folder / "whole"} if row.before else {}
    numbers = torch.arange(len(WORDS))
    if row.tokenizer:
        write_tokenizer(folder / "whole", WORDS)
        others["other"] = write_holder(folder / "other", OTHER_WORDS)
        numbers = torch.tensor([OTHER_WORDS.index(word) for word in WORDS])
    edit(folder / "whole", folder / "out", *first, *row.before, row.asked, **others)
    made = logits(load(folder / "out"), numbers[TOKENS])
    before, after = row.look(logits(model)), row.look(made[..., numbers] if row.tokenizer else made)
    return Agreement(float((after - before).abs().max()), float(before.abs().max()))


def measure_all(row: AgreementRow) -> Agreement:
    """The largest of all models of a row."""
    found = list[Agreement]()
    for name in row.models:
        with TemporaryDirectory() as folder:
            found.append(measure(row, name, Path(folder)))
    return Agreement(max(each.difference for each in found), max(each.largest for each in found))


def documented() -> Mapping[str, float]:
    """The difference of each step, as the page says it."""
    lines = between(PAGE.read_text(encoding="utf-8"), MARK).splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return {step: float(difference) for step, _, difference, _ in cells}


def main() -> None:
    """Write the table."""
    lines = ["| step | models | largest difference | largest logit |", "|---|---:|---:|---:|"]
    for row in ROWS:
        found = measure_all(row)
        difference = f"{found.difference:.0e}" if found.difference else "0"
        lines.append(f"| {row.step} | {len(row.models)} | {difference} | {found.largest:.1f} |")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(put_between(page, MARK, "\n".join(lines).replace("e-0", "e-")), encoding="utf-8")


if __name__ == "__main__":
    main()
