"""Steps as they are typed at the prompt: OLY, a step a line, or YAML."""

from __future__ import annotations

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.plan.source import List, Map, Node, compose

PROMPT = "<prompt>"
"""The file name in places of typed text."""


def nodes(text: str, file: str = PROMPT) -> tuple[Node, ...]:
    """The steps that a text holds, as nodes. Raises PlanError.

    One rule: lines that all start at the margin with a word are OLY, a step each; anything else (indented lines, a text
    that starts with a dash or a bracket) is YAML, one step or a list of them. Lines that are no OLY may still be one
    step of YAML, such as one with a comment at its end, or with a bracket that is closed in another line.
    """
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not all(_is_word(line[0]) for _, line in lines) or not lines:
        return _of_yaml(text, file)
    try:
        return tuple(parse_oly(line.rstrip(), file, at) for at, line in lines)
    except PlanError:
        if found := _one_step_of_yaml(text, file):
            return found
        raise


def _one_step_of_yaml(text: str, file: str) -> tuple[Node, ...]:
    """The step that a text is in YAML, if it is one."""
    try:
        found = _of_yaml(text, file)
    except PlanError:
        return ()
    return found if len(found) == 1 and isinstance(found[0], Map) and len(found[0].entries) == 1 else ()


def _is_word(character: str) -> bool:
    return character.isalpha() or character == "_"


def _of_yaml(text: str, file: str) -> tuple[Node, ...]:
    root = compose(text, file)
    if isinstance(root, Map) and len(root.entries) == 1 and root.entries[0][0].text == "transforms":
        root = root.entries[0][1]
    return root.items if isinstance(root, List) else () if root is None else (root,)
