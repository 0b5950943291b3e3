"""The error of a reference, raised before its place in the plan is known."""

from __future__ import annotations

from brainsurgery_jax.errors import Refusal


class RefError(Refusal, ValueError):
    """A mistake in a reference, pattern, template or slice: a stable code, what was found, and what to do.

    Callers that know the place in the plan catch it as a Refusal, Python callers as a ValueError.
    """

    def __init__(self, code: str, message: str, hint: str = ""):
        super().__init__(code, message, hint=hint)
        self.args = (code, message, hint)  # what makes an equal one: for copies and pickles

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


def shown(source: str | tuple[str, ...]) -> str:
    """A pattern or template as a message prints it: text in quotes, tokens as a list."""
    return f"'{source}'" if isinstance(source, str) else str(list(source))
