"""What is wrong with a reference, before anyone knows where in the plan it stands."""

from __future__ import annotations

from brainsurgery_jax.errors import Refusal


class RefError(Refusal, ValueError):
    """A mistake in a reference, pattern, template or slice: a stable code, what was found, and what to do.

    A Refusal to those who know the place in the plan, and a ValueError to who calls these functions from Python.
    """

    def __init__(self, code: str, message: str, hint: str = ""):
        super().__init__(code, message, hint=hint)
        self.args = (code, message, hint)  # what makes an equal one: for copies and pickles

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


def shown(source: str | tuple[str, ...]) -> str:
    """A pattern or template as a message prints it: text in quotes, tokens as a list."""
    return f"'{source}'" if isinstance(source, str) else str(list(source))
