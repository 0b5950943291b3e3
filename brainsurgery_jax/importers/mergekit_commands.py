"""Convert a command line of mergekit-extract-lora to a plan with a step `lora_extract`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.importers.imported import Imported
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.mergekit_config import FORM
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.version import __version__

EXTRACT = "mergekit-extract-lora"
_TAKES = ("--model", "--base-model", "--out-path", "--max-rank", "--sv-epsilon")
_IGNORED = ("--cuda", "--no-cuda", "--lazy-unpickle", "--no-lazy-unpickle", "--low-cpu-memory", "--gpu-rich",
            "--verbose", "-v", "--trust-remote-code")  # fmt: skip
"""Switches on how mergekit runs."""
_ALWAYS = ("--embed-lora", "--distribute-scale")
"""Switches that `lora_extract` needs not be told."""
_MOST_RANK = 128
_RANKS = (
    "for a rank by what singular values hold, `energy: 0.99` instead of `rank` in the step `lora_extract` of the plan"
)


def is_extraction(text: str) -> bool:
    """Whether a text is a command line of mergekit-extract-lora rather than the path of a configuration."""
    return text.split(maxsplit=1)[:1] == [EXTRACT] and len(text.split()) > 1


def import_extraction(command: str) -> Imported:
    """The plan of a command line. Raises PlanError for what plans cannot express, StoreError for unreadable models."""
    try:
        words = shlex.split(command)[1:]
    except ValueError as error:
        raise refuse(f"{EXTRACT}: a quotation mark is not closed ({error})", None, code=FORM) from error
    ignored = [word for word in words if word in _IGNORED]
    given = dict(_read_options([word for word in words if word not in (*_IGNORED, *_ALWAYS)]))
    for key in _TAKES[:3]:
        if key not in given:
            raise refuse(f"{EXTRACT}: {key} is missing", None, f"Add `{key} PATH`.", FORM)
    models = [Model.find(given["--base-model"], "base", None), Model.find(given["--model"], "tuned", None)]
    notes = [f"From a command line of {EXTRACT}, by brainsurgery-jax {__version__}."]
    notes += [f"{word} is ignored." for word in dict.fromkeys(ignored)]
    steps = [step for model in models for step in model.folds]
    steps.append(Substep("lora_extract", {"base": "base", "tuned": "tuned", "to": "adapter", "rank": _rank_of(given)}))
    output = {"path": f"{given['--out-path'].rstrip('/')}/", "alias": "adapter", "format": "peft"}
    inputs = tuple(each for model in models for each in model.inputs)
    made = Imported(command, tuple(notes), inputs, tuple(steps), output)
    made.check()
    return made


def _read_options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, written `--key value` or `--key=value`."""
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if key not in _TAKES:
            near = did_you_mean(key, (*_TAKES, *_IGNORED, *_ALWAYS))
            hint = (f"Supported: {', '.join(_TAKES)}. Which tensors are looked at, say by `of: PATTERN` in the step "
                    "`lora_extract` of the plan.")  # fmt: skip
            raise refuse(f"{EXTRACT}: '{key}' cannot be imported.{near}", None, hint)
        found = value if equals else next(rest, "")
        if not found:
            raise refuse(f"{EXTRACT}: {key} has no value", None, f"Write `{key}=VALUE`.", FORM)
        yield key, found


def _rank_of(given: Mapping[str, str]) -> int:
    epsilon, rank = given.get("--sv-epsilon", "0"), given.get("--max-rank", str(_MOST_RANK))
    if epsilon.strip("0.") or not epsilon.strip("."):
        hint = ("Leave it out; for a rank by what singular values hold, write `energy: 0.99` in the place of `rank` in "
                "the step `lora_extract` of the plan.")  # fmt: skip
        raise refuse(f"{EXTRACT}: --sv-epsilon {epsilon} cannot be imported, only 0", None, hint)
    if not rank.isdecimal() or int(rank) < 1:
        raise refuse(f"{EXTRACT}: --max-rank: expected a positive number, got '{rank}'", None, code=FORM)
    return int(rank)
