"""The error of running a plan twice: its own output as its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from brainsurgery_jax.auditing.cases import CONFIG, Case, Mutant, Mutator, StandIn, key_of
from brainsurgery_jax.auditing.runner import try_case
from brainsurgery_jax.checkpoint import open as open_checkpoint


def _run_again(case: Case) -> Iterator[Mutant]:
    found: list[StandIn] = []

    def look(places: Mapping[str, Path]) -> None:
        saved = max(0, len(places) - len(case.outputs))  # by steps, which come first
        found.extend(map(_read, [*places.values()][saved:]))

    try_case(case, look)
    paths = dict(case.inputs)
    for output, written in zip(case.outputs, found, strict=False):
        told = output.get("alias") if isinstance(output, Mapping) else None
        alias = told or case.default_alias
        key = key_of(paths[alias]) if alias in paths else ""
        if key in case.stand_ins:
            own = case.stand_ins[key]
            again = own._replace(tensors=written.tensors, avals=written.avals, side={**own.side, **written.side})
            yield Mutant(f"{alias}: what the plan wrote before", case.replace_stand_in(key, again))


def _read(place: Path) -> StandIn:
    """What an output holds."""
    checkpoint = open_checkpoint(str(place))
    tensors = {name: checkpoint[name] for name, aval in checkpoint.avals.items() if not aval.dtype.is_opaque}
    avals = {name: checkpoint.avals[name] for name in tensors}
    checkpoint.source.close()
    config = place / CONFIG
    side = {CONFIG: config.read_bytes()} if config.is_file() else {}
    return StandIn(str(place), tensors, avals, side=side)


AGAIN = Mutator("plan run on its own output", "scale", _run_again)
