"""Convert a command line of mergekit-extract-lora to a plan with a step `lora_extract`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.imported import Imported
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.version import __version__

EXTRACT = "mergekit-extract-lora"
_TAKES = (
    "--model",
    "--base-model",
    "--out-path",
    "--max-rank",
    "--sv-epsilon",
    "--include-regex",
    "--exclude-regex",
    "--save-module",
)
_SHORT = {"-i": "--include-regex", "-e": "--exclude-regex", "-j": "--num-threads"}
_IGNORED = (
    "--verbose", "-v", "--gpu-rich", "--no-distribute-scale",
    *(f"--{no}{switch}" for no in ("", "no-") for switch in
      ("cuda", "lazy-unpickle", "low-cpu-memory", "trust-remote-code", "read-to-gpu", "multi-gpu", "quiet",
       "async-write", "copy-tokenizer", "clone-tensors", "write-model-card", "safe-serialization")),
)  # fmt: skip
"""Switches on how mergekit runs, on side files, and on how factors of one product share its scale."""
_IGNORED_VALUES = ("--device", "--num-threads", "--write-threads", "--out-shard-size", "--random-seed",
                   "--transformers-cache", "--lora-merge-cache")  # fmt: skip
"""The same, with a value."""
_TABLES = ("embed_tokens", "embed_in", "embed_out", "lm_head", "wte")
"""What names of tables of words contain: mergekit looks at these in any case."""
_ALWAYS = ("--embed-lora", "--distribute-scale")
"""Switches that `lora_extract` needs not be told."""
_MOST_RANK = 128


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
    options = list(_read_options([word for word in words if word not in (*_IGNORED, *_ALWAYS)]))
    ignored += [key for key, _ in options if key in _IGNORED_VALUES]
    given = dict(options)
    for key in _TAKES[:3]:
        if key not in given:
            raise refuse(f"{EXTRACT}: {key} is missing", None, f"Add `{key} PATH`.", FORM)
    models = [Model.find(given["--base-model"], "base", None), Model.find(given["--model"], "tuned", None)]
    notes = [f"From a command line of {EXTRACT}, by brainsurgery-jax {__version__}."]
    notes += [f"{word} is ignored." for word in dict.fromkeys(ignored)]
    steps = [step for model in models for step in model.preparations]
    keys: dict[str, object] = {"base": "base", "tuned": "tuned", "to": "adapter", "rank": _rank_of(given)}
    keys |= {"least": least} if (least := _least_of(given)) else {}
    whole = [value for key, value in options if key == "--save-module"]
    keys |= {"whole": whole} if whole else {}
    steps.append(Substep("lora_extract", keys | _choice_of(options)))
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
        key = _SHORT.get(key, key)
        if key not in (*_TAKES, *_IGNORED_VALUES):
            near = did_you_mean(key, (*_TAKES, *_IGNORED, *_ALWAYS))
            hint = (
                f"Supported: {', '.join(_TAKES)}. For other choices of tensors, leave it out, and write `of: PATTERN` "
                "into the step `lora_extract` of the plan."
            )
            raise refuse(f"{EXTRACT}: '{key}' cannot be imported.{near}", None, hint)
        found = value if equals else next(rest, "")
        if not found:
            raise refuse(f"{EXTRACT}: {key} has no value", None, f"Write `{key}=VALUE`.", FORM)
        yield key, found


_END = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|\$")
"""The sign for the end, but for one that is escaped or stands in a set of characters."""


def _choice_of(options: Sequence[tuple[str, str]]) -> dict[str, object]:
    """The key `of` for the modules that regular expressions choose; tables of words are looked at in any case."""
    tables = "|".join(_TABLES)
    wanted, others = (
        [_of_modules(regex) for key, regex in options if key == f"--{which}-regex"] for which in ("include", "exclude")
    )
    if not wanted and not others:
        return {}
    # What is found ends before the last dot of the name, where the module does.
    inside = rf"(?=.*?({'|'.join(wanted)}).*\.[^.]+$)" if wanted else ""
    outside = rf"(?!.*?({'|'.join(others)}).*\.[^.]+$)" if others else ""
    return {"of": f"{inside}{outside}.*|.*({tables}).*"}


def _of_modules(regex: str) -> str:
    """A regular expression on names of modules, for names of tensors: a module ends before the last dot of these."""
    flags = re.match(r"\(\?([aimsux]+)\)", regex)
    scoped = regex if flags is None else f"(?{flags[1]}:{regex[flags.end() :]})"
    made = _END.sub(lambda found: found[1] or r"(?=\.[^.]+$)", scoped)
    try:
        re.compile(regex)
        re.compile(f"(?=({made}))")
    except re.error as error:
        hint = "Correct it: it is searched in the names of modules, such as `model.layers.0.mlp.up_proj`."
        raise refuse(f"{EXTRACT}: '{regex}' is no regular expression ({error})", None, hint, FORM) from error
    return made


def _rank_of(given: Mapping[str, str]) -> int:
    rank = given.get("--max-rank", str(_MOST_RANK))
    if not rank.isdecimal() or int(rank) < 1:
        raise refuse(f"{EXTRACT}: --max-rank: expected a positive number, got '{rank}'", None, code=FORM)
    return int(rank)


def _least_of(given: Mapping[str, str]) -> float:
    """The bound up to which singular values are left out."""
    text = given.get("--sv-epsilon", "0")
    try:
        least = float(text)
    except ValueError:
        least = -1.0
    if not 0 <= least < float("inf"):
        raise refuse(f"{EXTRACT}: --sv-epsilon: expected a number that is not negative, got '{text}'", None, code=FORM)
    return least
