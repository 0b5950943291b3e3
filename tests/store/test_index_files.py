"""The index of shards: a key that stands twice is refused, in whichever of its maps."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.index_files import read_index

TWICE = {
    "a tensor": '{"weight_map": {"a": "one", "a": "one"}}',
    "a fact": '{"metadata": {"total_size": 1, "total_size": 2}, "weight_map": {"a": "one"}}',
    "a map": '{"weight_map": {"a": "one"}, "weight_map": {"b": "one"}}',
}


@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE)
def test_a_key_of_an_index_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(StoreError, match="appears twice"):
        read_index(str(tmp_path / "index.json"))
