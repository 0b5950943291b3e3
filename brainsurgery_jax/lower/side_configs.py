"""Other JSON files beside a checkpoint that steps change: those of the tokenizer, of generation, of processors.

The template of chats has two homes: the key `chat_template` of tokenizer_config.json, or a file of its own, which
counts before the key. Here it is always that key; an output puts it back to where the checkpoint has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.lower.configs import CONFIG, dump_config, side_file
from brainsurgery_jax.lower.state import Extras, World
from brainsurgery_jax.store.folder import ADAPTER_CONFIG
from brainsurgery_jax.store.sidecars import is_side_name

TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
KEY = "chat_template"


def check_file(file: str) -> None:
    """Refuse the name of a file that a step `config` cannot change."""
    if file in (CONFIG, ADAPTER_CONFIG):
        hint = "Leave out `file`: then the step changes config.json, or adapter_config.json of an adapter."
        raise Refusal("output-config", f"'{file}' is not one of the other files", key="file", hint=hint)
    if not re.fullmatch(r"[\w.-]+\.json", file) or not is_side_name(file):
        message = f"'{file}' is no JSON file that travels with a checkpoint"
        hint = "Write the name of one, such as `file: tokenizer_config.json`; docs/formats.md lists them."
        raise Refusal("output-config", message, key="file", hint=hint)


def read_side_config(extras: Extras, file: str, world: World) -> object | None:
    """The current content of a JSON file of an alias, with the template of chats as a key; None if there is none.
    Raises Refusal."""
    if file in extras.configs:
        return extras.configs[file]
    text = _original(extras, file, world)
    template = _template(extras, world) if file == TOKENIZER_CONFIG else None
    try:
        found = None if text is None else parse_json(text)
    except ValueError as error:
        message = f"the {file} of '{extras.home_of(file)}' is not JSON: {error}"
        raise Refusal("io-input", message, key="file", hint="Correct its text.") from error
    if template is None or not isinstance(found, dict | None):
        return found
    return {**(found or {}), KEY: template}


def check_template(extras: Extras, file: str, config: Mapping[str, Any], world: World) -> None:
    """Refuse a template that is no text where it lies in a file of its own."""
    if file != TOKENIZER_CONFIG or isinstance(config.get(KEY), str | None) or _template(extras, world) is None:
        return
    message = f"{KEY}: expected a text, since it lies in {TEMPLATE}, got a {type(config[KEY]).__name__}"
    raise Refusal("output-config", message, key="patch", hint="Write one template as a text.")


def write_side_configs(extras: Extras, world: World) -> Iterator[tuple[str, bytes]]:
    """The files that steps changed beside the config of the model and of an adapter. Raises Refusal."""
    for file, config in extras.configs.items():
        if file == TOKENIZER_CONFIG and _template(extras, world) is not None:
            yield from _split(config, _original(extras, file, world))
        elif file not in (CONFIG, ADAPTER_CONFIG):
            yield file, dump_config(config)


def _split(config: Mapping[str, Any], original: bytes | None) -> Iterator[tuple[str, bytes]]:
    """The settings of a tokenizer and its template apart. Where the settings had a template, too, they keep it."""
    if (text := config.get(KEY)) is not None:
        yield TEMPLATE, text.encode()
    had = original is not None and KEY in parse_json(original)
    yield TOKENIZER_CONFIG, dump_config({k: v for k, v in config.items() if k != KEY or had})


def _original(extras: Extras, name: str, world: World) -> bytes | None:
    """A side file before steps changed its keys."""
    if name in extras.made_tokenizer:
        return extras.made_tokenizer[name]
    return side_file(extras.home_of(name), name, world)


def _template(extras: Extras, world: World) -> str | None:
    """The template of chats that has a file of its own; None if there is none."""
    text = _original(extras, TEMPLATE, world)
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError as error:
        message = f"the {TEMPLATE} of '{extras.home_of(TEMPLATE)}' is not UTF-8: {error.reason}"
        raise Refusal("io-input", message, key="file", hint="Correct its text.") from error
