"""Why a command failed, as data, and its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import typer

from brainsurgery_jax.cli import log, show
from brainsurgery_jax.cli.exit_codes import ExitCode
from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import PlanError, Stopped, StoreError
from brainsurgery_jax.rendering.data import command_error_data, diagnostic_data, document_data, store_error_data


class Failure(NamedTuple):
    """The exit code of a command that failed, and diagnostics as data."""

    exit_code: int
    diagnostics: list[dict[str, object]]


def failure_of(error: PlanError | StoreError | Stopped | KeyboardInterrupt) -> Failure:
    """The failure that an error is."""
    match error:
        case PlanError(diagnostics=found):
            return Failure(show.exit_code(found), list(map(diagnostic_data, show.in_order(found))))
        case StoreError():
            return Failure(ExitCode.FILES, [store_error_data(error)])
        case _:
            notes = getattr(error, "__notes__", ())
            return Failure(
                ExitCode.INTERRUPTED, [command_error_data("interrupted", "; ".join(["interrupted", *notes]))]
            )


@contextmanager
def print_failure_as_json(reports: Sequence[Document]) -> Iterator[None]:
    """A block whose failure is printed as JSON, with the reports that came before it."""
    try:
        yield
    except (PlanError, StoreError, Stopped, KeyboardInterrupt) as error:
        code, found = failure_of(error)
        log.print_traceback(error)
        show.json(ok=False, exit_code=code, diagnostics=found, reports=list(map(document_data, reports)))
        raise typer.Exit(code) from error
