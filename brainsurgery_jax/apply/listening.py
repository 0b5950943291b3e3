"""Where the reports of steps go while a plan is applied to trees."""

from __future__ import annotations

import logging
from collections.abc import Callable

from brainsurgery_jax.documents import Document
from brainsurgery_jax.rendering.text import as_text

Show = Callable[[Document], None]
"""Gets the report of each step that has one, in the order of the plan."""


def log(document: Document) -> None:
    """Log the text of a report.

    At level WARNING: the plan asks for it, and it is then seen in a script that does not configure logging.
    """
    logging.getLogger("brainsurgery_jax").warning("%s", as_text(document))
