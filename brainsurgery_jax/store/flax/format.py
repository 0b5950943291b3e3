"""Files of flax, as the table of formats wants them."""

from __future__ import annotations

from brainsurgery_jax.store.flax.layout import check_flax as check_output
from brainsurgery_jax.store.flax.source import open_flax as open_source
from brainsurgery_jax.store.flax.writer import open_writer

__all__ = ["check_output", "open_source", "open_writer"]
