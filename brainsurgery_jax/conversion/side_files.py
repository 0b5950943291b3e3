"""The model's config.json beside a converted checkpoint, true to what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brainsurgery_jax.dtypes import parse_dtype

DTYPE_KEYS = ("dtype", "torch_dtype")


def settle(destination: str, config: Mapping[str, Any] | None, dtype: str | None) -> bool:
    """Write config.json into a folder that lacks it, with the dtype that was cast to; whether anything was written."""
    folder = Path(os.path.expanduser(destination))
    if config is None or not folder.is_dir():
        return False
    place = folder / "config.json"
    wanted = _with_dtype(config, dtype)
    if place.is_file() and wanted == dict(config):
        return False
    beside = place.with_name(".config.json.partial")
    beside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, place)
    return True


def _with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    named = parse_dtype(dtype) if dtype is not None else None
    changed = {key: named.name for key in DTYPE_KEYS if named is not None and key in config}
    return {**config, **changed}
