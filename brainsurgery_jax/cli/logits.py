"""`compare-logits`: how far two decoders are apart, for people and as JSON."""

from __future__ import annotations

from typing import NamedTuple

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.comparison.logits import compare_logits as compare
from brainsurgery_jax.documents import Facts
from brainsurgery_jax.rendering.text import as_text

WITHIN, BEYOND = range(2)


class LogitLimits(NamedTuple):
    """What is allowed: the largest difference of two logits, and the mean KL divergence."""

    max_diff: float | None = None
    kl: float | None = None


def compare_logits(sides: tuple[str, str], tokens: str, limits: LogitLimits, *, memory: str | None, json: bool) -> int:
    """Print the figures. Returns the exit code: 0 within the limits, 1 beyond one of them."""
    found = compare(*sides, tokens=_tokens_of(tokens), memory=size_of(memory, "--memory"))
    beyond = not found.finite or any(
        limit is not None and not value <= limit  # nothing is within a limit that is NaN
        for value, limit in ((found.max_diff, limits.max_diff), (found.kl, limits.kl))
    )
    if json:
        show.json(left=sides[0], right=sides[1], within=not beyond, **found._asdict())
    else:
        facts = (
            ("largest difference of two logits", f"{found.max_diff:.4g}"),
            ("KL divergence, nats a token", f"{found.kl:.4g}"),
            ("same next token", f"{found.agreement:.1%}"),
            ("all finite", "yes" if found.finite else "no"),
        )
        show.result(as_text(Facts(f"{sides[0]} and {sides[1]}", facts)))
    return BEYOND if beyond else WITHIN


def _tokens_of(text: str) -> int | list[int]:
    """How many tokens a count asks for, or the ids that a list has; one id is a list with a comma behind it."""
    parts = text.removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        message = f"expected ids with commas between them, or a count; got '{text}'. One id alone is written `3,`."
        raise typer.BadParameter(message, param_hint="--tokens")
    return [int(part) for part in parts] if "," in text else int(text)
