"""Candidates that fit one checkpoint alone: fingerprints of inputs, and norms of what the right plan computes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path

from brainsurgery_jax.auditing.cases import Case, key_of, spread
from brainsurgery_jax.auditing.runner import try_case
from brainsurgery_jax.auditing.stand_ins import fingerprint_of
from brainsurgery_jax.auditing.written import AliasOutput
from brainsurgery_jax.checkpoint import open as open_checkpoint

SAMPLES = 3
RTOL = 1e-5


def fingerprints(case: Case) -> Iterator[Mapping[str, Mapping[str, object]]]:
    """The operators that name each input by its content."""
    for alias, path in case.inputs:
        yield {"fingerprint": {"of": alias, "is": fingerprint_of(case.stand_ins[key_of(path)])}}


def norms(case: Case, outputs: Iterable[AliasOutput]) -> Iterator[Mapping[str, object]]:
    """The operators that state the norms of a few computed tensors of outputs."""
    held: dict[str, Mapping[str, float]] = {}
    try_case(case, lambda places: held.update((path, _measure(place)) for path, place in places.items()))
    for written in outputs:
        found = held[written.path]
        computed = [n for n, e in written.tensors.items() if not e.is_leaf and isfinite(found.get(n, float("nan")))]
        for name in spread(computed, SAMPLES):
            bounds = {"is": found[name], "eps": max(found[name] * RTOL, 1e-9)}
            yield {"norm": {"of": f"{written.alias}::{re.escape(name)}", **bounds}}


def _measure(place: Path) -> Mapping[str, float]:
    """The norms of the floats of a checkpoint."""
    import numpy as np

    checkpoint = open_checkpoint(str(place))
    floats = [name for name, aval in checkpoint.avals.items() if aval.dtype.is_float and aval.size]
    found = {name: float(np.linalg.norm(checkpoint[name].astype(np.float64).reshape(-1))) for name in floats}
    checkpoint.source.close()
    return found
