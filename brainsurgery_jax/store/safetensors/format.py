"""Files of safetensors, as the table of formats wants them."""

from __future__ import annotations

from brainsurgery_jax.store.safetensors.layout import check_storable as check_output
from brainsurgery_jax.store.safetensors.source import open_safetensors as open_source
from brainsurgery_jax.store.safetensors.writer import write as open_writer

__all__ = ["check_output", "open_source", "open_writer"]
