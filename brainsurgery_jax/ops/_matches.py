"""What `compute` knows of the matches of its pattern: names, numbers that they captured, and sets of them."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

from brainsurgery_jax.config_patch import find_setting, setting_paths
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.expression.floats import work_dtype
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.expression.parse import NUMBER_HINT, Expression, walk_names
from brainsurgery_jax.expression.scope import SetTerm, number_sources
from brainsurgery_jax.ops._formulas import widen_float
from brainsurgery_jax.ops.shape import concatenate, with_shape
from brainsurgery_jax.protocol import Row, TensorExpr, View
from brainsurgery_jax.select import Binding, Pattern, Ref, RefError, Template, compile_template

Numbers: TypeAlias = "tuple[tuple[str, float], ...]"
"""What `${...}` stands for, by what is between the braces."""

_KEYS = ("from", "to", "expr", "let", "dtype", "overflow")
_CONFIG = "config."


def check_names(expression: Expression, names: Sequence[str], lets: Mapping[str, Expression]) -> None:
    """Refuse names that cannot stand in an expression, or that it uses and nobody gives."""
    for name in (*names, *lets):
        if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS or name in _KEYS:
            why = "is a function" if name in FUNCTIONS else "is a key of this step" if name in _KEYS else "is no name"
            hint = "Take a name of letters, digits and _, such as `w`."
            key = "from" if name in names else "let"
            raise Refusal("expression-name", f"'{name}' {why}, so no tensor can be called that", key=key, hint=hint)
    if twice := sorted(set(names) & lets.keys()):
        hint = "Choose another name for one of them."
        raise Refusal("expression-name", f"'{twice[0]}' is both under `from` and under `let`", key="let", hint=hint)
    for local in (*lets.values(), expression):
        known = {*names, *lets, *(name for name, _ in local.numbers)}
        for node in walk_names(local.tree):
            if node.id not in known:
                near = did_you_mean(node.id, (*names, *lets))
                message = f"'{node.id}' is not among the names under `from` ({', '.join(names)}).{near}"
                raise local.refusal(node, message, code="expression-name")


# --- Numbers ----------------------------------------------------------------------------------------------------------


class NumberFinder:
    """The numbers of a step: what its pattern captured, matched once for all of its matches, and those of configs."""

    def __init__(self, view: View, ref: Ref) -> None:
        self.view, self.ref = view, ref
        self._templates: dict[str, Template] = {}
        self._configured: dict[str, float] = {}

    @cached_property
    def _captured(self) -> tuple[Pattern, Mapping[str, Binding]]:
        pattern, matches = self.view.captures(self.ref, "from")
        return pattern, dict(matches)

    def find(self, expressions: Collection[Expression], rows: Sequence[Row]) -> Numbers:
        """What `${...}` in expressions is for some matches, for which it must be the same. Raises Refusal."""
        found: dict[str, float] = {}
        for source in sorted(frozenset().union(*map(number_sources, expressions))):
            values = {self._number(source, name) for name, _ in rows}
            if len(values) > 1:
                some = ", ".join(map(str, sorted(values)[:5]))
                message = f"'${{{source}}}' is not the same for all matches: {some}"
                hint = "Use it within what ranges over the matches."
                raise Refusal("expression-value", message, key="expr", hint=hint)
            found[source] = values.pop()
        return tuple(found.items())

    def _number(self, source: str, name: str) -> float:
        alias, _, path = source.rpartition("::")
        if path.startswith(_CONFIG):
            if source not in self._configured:
                value = _config_number(self.view, alias or self.ref.alias, path.removeprefix(_CONFIG))
                self._configured[source] = value
            return self._configured[source]
        pattern, matches = self._captured
        try:
            if source not in self._templates:
                self._templates[source] = compile_template(f"${{{source}}}", pattern)
            text = self._templates[source].number(name, matches[name])
        except RefError as bad:
            raise Refusal("expression-value", f"'${{{source}}}': {bad}", key="expr", hint=NUMBER_HINT) from bad
        if not text.removeprefix("-").isdecimal():
            message = f"'${{{source}}}' is '{text}' for '{name}', which is no whole number"
            raise Refusal("expression-value", message, key="expr", hint=NUMBER_HINT)
        return int(text)


def _config_number(view: View, alias: str, path: str) -> float:
    known = view.config(alias)
    if known is None:
        message = f"'{alias}' has no config to take '{path}' from"
        raise Refusal("expression-value", message, key="expr", hint="Write the number itself.")
    file, settings = known
    held, paths = find_setting(settings, path), list(setting_paths(settings))
    if path not in paths:
        message = f"{file} of '{alias}' has no '{path}'.{did_you_mean(path, paths)}"
        raise Refusal("expression-value", message, key="expr", hint="Write the number itself.")
    if isinstance(held, bool) or not isinstance(held, int | float):
        message = f"'{path}' of {file} is no number: {held!r}"
        raise Refusal("expression-value", message, key="expr", hint="Write the number itself.")
    return held


# --- Sets -------------------------------------------------------------------------------------------------------------


def group_rows(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The matches by the name that they make of their result, the last of their names."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[1][-1], []).append(row)
    yield from groups.items()


def join_all(view: View, term: SetTerm, each: Sequence[TensorExpr], names: Sequence[str]) -> TensorExpr:
    """What is computed of each match, as one tensor: joined along the first axis, or stacked along a new one."""
    stacked = term.joined != "concat_over"
    wide = _common([e.aval.dtype for e in each])
    parts = [e if e.aval.dtype == wide else view.apply(widen_float, e, dtype=wide) for e in each]
    shapes = [e.aval.shape for e in parts]
    own = [shape if stacked else shape[1:] for shape in shapes]
    if odd := next((at for at, shape in enumerate(own) if shape != own[0]), None):
        message = f"'{names[0]}' gives {each[0].aval}, and '{names[odd]}' {each[odd].aval}"
        hint = "Reduce each to one shape, as `sum_over(sum(x))` does, or flatten each: `concat_over(reshape(x, -1))`."
        raise Refusal("shapes-differ", message, key="expr", hint=hint)
    rows = [
        view.apply(with_shape, e, shape=(1, *shape)) if stacked or not shape else e
        for e, shape in zip(parts, shapes, strict=True)
    ]
    return rows[0] if len(rows) == 1 else view.apply(concatenate, *rows, axis=0)


def _common(dtypes: Sequence[DType]) -> DType:
    """The dtype of what is joined: that of all, of several floats the one that is computed in."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    if all(d.is_float for d in dtypes):
        return work_dtype(dtypes)
    found = ", ".join(sorted({d.name for d in dtypes}))
    hint = "Cast each within what ranges over the matches: `float32(x)`."
    raise Refusal("dtypes-differ", f"what is joined is of several dtypes: {found}", key="expr", hint=hint)
