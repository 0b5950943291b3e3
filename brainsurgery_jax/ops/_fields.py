"""Kinds of payload values that several families of ops take."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, StringConstraints

Word = BeforeValidator(lambda v: v.strip().lower() if isinstance(v, str) else v)
"""Put on a `Literal` of words: case and surrounding space do not matter."""

Text = Annotated[str, StringConstraints(min_length=1)]
"""Text that is not empty."""
