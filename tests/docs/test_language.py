"""The language guide names all that there is."""

from __future__ import annotations

import pytest

from brainsurgery_jax.desk import COMMANDS
from brainsurgery_jax.plan.endpoints import OUTPUT_KEYS
from brainsurgery_jax.plan.parse import KEYS
from tests.docs.examples import sections
from tests.docs.write import ROOT

PAGE = {s.title: s.text for s in sections((ROOT / "docs" / "language.md").read_text(encoding="utf-8"))}


def rows(title: str) -> str:
    """The first column of the tables of a section."""
    lines = [line for line in PAGE[title].splitlines() if line.startswith("| `")]
    return "\n".join(line.split(" | ")[0] for line in lines)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_plan_is_in_its_table(key: str) -> None:
    assert f"`{key}`" in rows("A plan file")


@pytest.mark.parametrize("key", OUTPUT_KEYS)
def test_every_key_of_an_output_is_in_its_table(key: str) -> None:
    assert f"`{key}`" in rows("Outputs")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_prompt_is_in_its_table(command: str) -> None:
    assert f"`{command}" in rows("The prompt")
