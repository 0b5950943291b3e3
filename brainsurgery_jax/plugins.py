"""Ops that somebody else wrote: in Python files named by the user, and in installed packages.

A file is run once, its decorators put its ops into the registry, and from then on they are ops like any other.
Installed packages announce modules of ops as entry points of the group `brainsurgery_jax.ops`. These are looked up only
when a plan names an op that is not known yet, or when all ops are listed.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature, unwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

from brainsurgery_jax.errors import Diagnostic, PlanError, Span, did_you_mean
from brainsurgery_jax.op import (
    ASSERTS,
    OPS,
    AnOp,
    Builder,
    NameTaken,
    Op,
    SinkOp,
    TensorOp,
    element_role,
    function_of,
)
from brainsurgery_jax.protocol import Dest
from brainsurgery_jax.regular_files import read_regular

GROUP = "brainsurgery_jax.ops"
CODE = "ops-file"


class _File(NamedTuple):
    """A file that was run: its content, and the records that it registered."""

    text: bytes
    records: tuple[Op, ...]


@dataclass
class _Loaded:
    """What has been added to the built-in ops so far; a part of the registry."""

    files: dict[str, _File] = field(default_factory=dict)
    looked_up: bool = False
    troubles: tuple[Diagnostic, ...] = ()


_loaded = _Loaded()


# --- Files ------------------------------------------------------------------------------------------------------------


def register(*paths: str | os.PathLike[str]) -> None:
    """Load user-defined ops from Python files, for every plan that is loaded from now on.

    A file that has not changed since it was registered is not run again; one that has changed replaces its ops. A file
    with any mistake adds nothing.

    **Arguments**: paths of Python files. Each is run as a module: register only files that you trust.
    **Returns** None.
    **Raises** PlanError with the mistakes of all files: one that cannot be read, fails, registers nothing, or uses a
    name that is taken.
    **Example**:

    >>> bs.register("my_ops.py")
    >>> bs.load("plan.yaml", "transforms=[{twice: {target: bias}}]").check()
    """
    problems: list[Diagnostic] = []
    for path in (os.fspath(p) for p in paths):
        try:
            _register(path)
        except PlanError as error:
            problems += error.diagnostics
    if problems:
        raise PlanError(problems)


def files() -> tuple[str, ...]:
    """The files that were registered."""
    return tuple(_loaded.files)


def _register(path: str) -> None:
    text, key = _read(path), os.path.realpath(os.path.expanduser(path))
    known = _loaded.files.get(key)
    if known is not None and known.text == text:
        return
    before = _registry()
    try:
        kept = () if known is None else _forget_all_of(known, key)
        made = _ops_added_by(path, lambda: _execute(path, text))
    except PlanError:
        _restore(before)
        raise
    _loaded.files[key] = _File(text, (*kept, *made))


def _forget_all_of(known: _File, key: str) -> tuple[Op, ...]:
    """Forget the ops written in a file; yields those that it had registered by importing something else."""
    own = [r for r in known.records if os.path.realpath(_place(r)[0]) == key]
    for registry in (OPS, ASSERTS):
        for name in [name for name, record in registry.items() if any(record is r for r in own)]:
            del registry[name]
    return tuple(r for r in known.records if not any(r is o for o in own))


def _registry() -> tuple[dict[str, Op], dict[str, SinkOp]]:
    import brainsurgery_jax.ops  # noqa: F401  (they stay, and their names are taken)

    return dict(OPS), dict(ASSERTS)


def _restore(before: tuple[dict[str, Op], dict[str, SinkOp]]) -> None:
    ops, asserts = before
    OPS.restore(ops)
    ASSERTS.restore(asserts)


def _read(path: str) -> bytes:
    if not path.endswith(".py"):
        raise _refusal(path, f"'{path}' is no Python file", "Ops are written in Python: name a file that ends in .py.")
    try:
        return read_regular(os.path.expanduser(path))
    except (FileNotFoundError, NotADirectoryError):
        folder = Path(os.path.expanduser(path)).parent
        near = did_you_mean(path, map(str, folder.glob("*.py"))) if folder.is_dir() else ""
        raise _refusal(path, f"the file of ops '{path}' does not exist.{near}", "") from None
    except OSError as error:
        raise _refusal(path, f"the file of ops '{path}' cannot be read: {error.strerror}", "") from error


def _execute(path: str, text: bytes) -> None:
    module = ModuleType(f"{GROUP}_of.{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    exec(compile(text, path, "exec"), vars(module))


def _ops_added_by(path: str, run: Callable[[], object], *, known: bool = False) -> tuple[Op, ...]:
    """The ops that running a file (or importing a module) adds. What fails adds none, and raises PlanError.

    `known`: it has been run before, so that it may add nothing.
    """
    before = _registry()
    try:
        run()
        made = tuple(_new(before))
        if not made and not known:
            hint = "Decorate a function with `@op(Form(...))`, `@control()` or `@assertion()` of brainsurgery_jax.op."
            raise _refusal(path, "no op is registered in it", hint)
        for record in made:
            _examine(record)
    except PlanError:
        _restore(before)
        raise
    except (Exception, SystemExit) as error:  # whatever somebody else's code may do
        _restore(before)
        raise PlanError([_diagnose(path, error)]) from error
    return made


def _new(before: tuple[dict[str, Op], dict[str, SinkOp]]) -> Iterator[Op]:
    for registry, old in zip((OPS, ASSERTS), before, strict=True):
        yield from (record for name, record in registry.items() if name not in old)


# --- What is wrong with them ------------------------------------------------------------------------------------------


def _refusal(path: str, message: str, hint: str, line: int = 0) -> PlanError:
    return PlanError([Diagnostic(CODE, message, Span(path, line, 1 if line else 0), hint)])


def _diagnose(path: str, error: BaseException) -> Diagnostic:
    """What running a file raised, at the line of the file that raised it."""
    match error:
        case NameTaken(first=first, second=second):
            file, line = _place(second)
            message = f"there is an op '{second.name}' already: {_whose(first)}"
            return Diagnostic(CODE, message, Span(file, line, 1), "Give yours another name.")
        case SyntaxError():
            place = Span(error.filename or path, error.lineno or 0, error.offset or 1)
            return Diagnostic(CODE, f"this is no Python: {error.msg}", place)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    place = Span(path, frames[-1].lineno or 0, 1) if frames else Span(path)
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return Diagnostic(CODE, f"running this file raised {what}", place, "It is run as a module, as by `import`.")


def _place(record: Op) -> tuple[str, int]:
    """The file and line of an op's function."""
    code = unwrap(function_of(record)).__code__
    return code.co_filename, code.co_firstlineno


def _whose(record: Op) -> str:
    file, line = _place(record)
    own = Path(__file__).parent
    return "a built-in one" if Path(file).is_relative_to(own) else f"that of {file}:{line}"


def _examine(record: Op) -> None:
    """Raise PlanError for an op that would fail later, when a plan names it or its page is shown."""
    file, line = _place(record)
    if not record.doc:
        hint = "Write one: its first line is the help of the op."
        raise _refusal(file, f"the function of '{record.name}' has no docstring", hint, line)
    if isinstance(record, TensorOp):
        _examine_form(record, file, line)
    for key in record.fields():
        if key.role is None and element_role(key.annotation) is None:
            _examine_type(key.param, key.annotation, file, line)


def _examine_form(record: TensorOp, file: str, line: int) -> None:
    if record.form.dest not in get_args(Dest):
        message = f"the form '{record.form.name}' has the destination '{record.form.dest}'"
        raise _refusal(file, message, f"There are: {', '.join(get_args(Dest))}.", line)
    form, kinds = record.form, [p.kind for p in signature(record.maker.fn).parameters.values()]
    tensors = sum(k in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
    tensors -= 2 * isinstance(record.maker, Builder)  # the view, and the name of the result
    if tensors != len(form.reads) and Parameter.VAR_POSITIONAL not in kinds:
        message = f"the function takes {tensors} tensors, and its form '{form.name}' reads {len(form.reads)}"
        hint = "Each key in `reads` is one positional parameter; parameters behind a `*` are keys of the plan."
        raise _refusal(file, message, hint, line)


def _examine_type(name: str, annotation: Any, file: str, line: int) -> None:
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

    try:
        TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        hint = "Annotate keys of the plan with int, float, str, bool, Literal[...], a role of brainsurgery_jax.op, ..."
        raise _refusal(file, f"the key '{name}' has a type that no plan can spell: {annotation}", hint, line) from error


def blamed(error: BaseException) -> Diagnostic | None:
    """A diagnostic for an exception that came out of a registered file while a plan was checked or run."""
    files = {_place(r)[0] for f in _loaded.files.values() for r in f.records}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    if not frames:
        return None
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    place = Span(frames[-1].filename, frames[-1].lineno or 0, 1)
    hint = "BRAINSURGERY_TRACEBACK=1 adds the traceback. For what a plan may get wrong, raise `Refusal`."
    return Diagnostic(CODE, f"'{frames[-1].name}' raised {what}", place, hint)


# --- Installed packages -----------------------------------------------------------------------------------------------


def find(registry: Mapping[str, AnOp], name: str) -> AnOp | None:
    """The op of a name, if need be from an installed package; None if there is none."""
    if name not in registry:
        look_up()
    return registry.get(name)


def look_up() -> tuple[Diagnostic, ...]:
    """Load the ops of installed packages, once; yields what went wrong with any of them, as notes."""
    if not _loaded.looked_up:
        _loaded.looked_up = True
        _loaded.troubles = tuple(_look_up())
    return _loaded.troubles


def left_out() -> tuple[str, ...]:
    """A sentence for each installed package whose ops could not be loaded."""
    return tuple(f"{d.span}: {d.message}" if d.span else d.message for d in _loaded.troubles)


def _look_up() -> Iterator[Diagnostic]:
    from importlib.metadata import entry_points

    for value, entry in {e.value: e for e in sorted(entry_points(group=GROUP))}.items():
        try:
            _ops_added_by(value, entry.load, known=entry.module in sys.modules)
        except PlanError as error:
            found = error.diagnostics[0]
            package = f"'{entry.dist.name}'" if entry.dist else "an installed package"
            message = f"the ops of {package} are left out: {found.message}"
            yield Diagnostic(CODE, message, found.span, found.hint, "note")


@contextmanager
def scope() -> Iterator[None]:
    """Within it ops may be registered, and installed packages are looked up anew; after it all that is forgotten."""
    global _loaded
    before, loaded = _registry(), _loaded
    _loaded = _Loaded(dict(loaded.files))
    try:
        yield
    finally:
        _restore(before)
        _loaded = loaded
