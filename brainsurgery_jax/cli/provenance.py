"""`verify`, `replay`, `inspect --blame` and `explain --tensor`: locks, and what they tell."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from brainsurgery_jax import api
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.plans import devices_of
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.provenance.blame import Blame, blame, explain_tensor, report_blame
from brainsurgery_jax.provenance.verification import Verification, replay, verify
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.wording import counted


def verify_output(path: str, at: str | None, *, inputs: bool, memory: str | None, json: bool) -> int:
    """Print how an output differs from its lock; yields the exit code. Raises StoreError."""
    found = verify(path, at=at, inputs=inputs, memory=size_of(memory, "--memory"))
    return _print(found, "is as the lock says", json=json)


def replay_output(path: str, to: str | None, given: Sequence[str], options: RunOptions, *, json: bool) -> int:
    """Make an output again and print how it differs; yields the exit code. Raises PlanError and StoreError."""
    inputs = dict(_split(text) for text in given)
    return _print(replay(path, to=to, inputs=inputs, options=options), "was made again, bit by bit", json=json)


def replay_options(memory: str | None, devices: str, *, overwrite: bool) -> RunOptions:
    """How to run again, by the options of a command."""
    return RunOptions(memory=size_of(memory, "--memory"), devices=devices_of(devices), overwrite=overwrite)


def _split(text: str) -> tuple[str, str]:
    alias, equals, path = text.partition("=")
    if not (alias and equals and path):
        raise typer.BadParameter(f"expected ALIAS=PATH, got '{text}'", param_hint="--input")
    return alias, path


def _print(found: Verification, fine: str, *, json: bool) -> int:
    if json:
        differences = list(found.differences)
        show.json(ok=found.ok, lock=found.lock, path=found.path, tensors=found.tensors, differences=differences,
                  headers_only=found.headers_only)  # fmt: skip
    elif found.ok:
        show.result(f"ok: {found.path} {fine} ({counted(found.tensors, 'tensor')})")
        if found.headers_only:
            show.remark("the lock has no digests: elements were not compared. `run --lock` writes them.", "yellow")
    else:
        for text in found.differences:
            show.result(text)
        show.remark(f"{found.path}: {counted(len(found.differences), 'difference')} from {found.lock}", "red")
    return 0 if found.ok else 1


def print_blame(path: str, name: str, *, json: bool) -> int:
    """Print what made a tensor of an output, by its lock; yields the exit code. Raises StoreError and PlanError."""
    return _print_chain(blame(path, name), json=json)


def print_tensor(items: Sequence[str], name: str, *, json: bool) -> int:
    """Print what makes a tensor of the output of a plan; yields the exit code. Raises PlanError."""
    return _print_chain(explain_tensor(api.load(*items), name), json=json)


def _print_chain(found: Blame, *, json: bool) -> int:
    if json:
        show.json(**record_data(report_blame(found)))
    else:
        show.report(report_blame(found))
    return 0
