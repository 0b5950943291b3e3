"""What the names of an expression stand for beside tensors: local names (`let`), numbers of a match (`${i}`), and
sets of tensors (`sum_over(...)`).

All of them are parts of the expression: a local name is another expression, a number a name that gets a value for each
match, and what ranges over a set an expression of its own, whose value is an operand.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.functions import SETS
from brainsurgery_jax.expression.parse import Expression, check_again, walk_names


class SetTerm(NamedTuple):
    """A part of an expression that ranges over matches: the name that stands for it, what is computed of each match,
    and how that is joined: `sum_over`, `stack_over` or `concat_over`."""

    name: str
    each: Expression
    joined: str


def bind_names(expression: Expression, lets: Mapping[str, Expression]) -> Expression:
    """An expression with local names, each of which may use those before it. Raises Refusal."""
    known: dict[str, Expression] = {}
    for name, local in lets.items():
        later = sorted((local.names & lets.keys()) - known.keys())
        if later:
            message = f"'{name}' uses '{later[0]}', which is not known yet"
            hint = "Under `let` each name may use those before it: change their order."
            raise Refusal("expression-name", message, key="let", hint=hint)
        if any(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in SETS for n in ast.walk(local.tree)
        ):
            message = f"'{name}' ranges over the matches"
            hint = f"Write `{local.text}` where the expression itself needs it; `let` is of one match."
            raise Refusal("expression-name", message, key="let", hint=hint)
        known[name] = _with_lets(local, known)
    return _with_lets(expression, known)


def _with_lets(expression: Expression, known: Mapping[str, Expression]) -> Expression:
    """An expression, and those of the local names that it needs."""
    own = {n: local for n, local in known.items() if n in expression.names}
    names = (expression.names - own.keys()).union(*(local.names for local in own.values()))
    elementwise = expression.elementwise and all(local.elementwise for local in own.values())
    return replace(expression, lets=tuple(own.items()), names=names, elementwise=elementwise)


def number_sources(expression: Expression) -> frozenset[str]:
    """What stands between the braces of `${...}`, in local names too."""
    own = {source for _, source in expression.numbers}
    return frozenset(own.union(*(number_sources(local) for _, local in expression.lets)))


def split_sets(expression: Expression) -> tuple[Expression, tuple[SetTerm, ...]]:
    """An expression in which what ranges over a set is a name, and what these names stand for."""
    cut = _Cut(expression)
    tree = cut.visit(expression.tree)
    if not cut.terms:
        return expression, ()
    bare = check_again(replace(expression, lets=(), tree=tree))
    return _with_lets(bare, dict(expression.lets)), tuple(cut.terms)


class _Cut(ast.NodeTransformer):
    """Puts names in place of the calls that range over sets."""

    def __init__(self, expression: Expression) -> None:
        self.expression, self.terms = expression, list[SetTerm]()

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not (isinstance(node.func, ast.Name) and node.func.id in SETS):
            copied = self.generic_visit(ast.Call(node.func, list(node.args), list(node.keywords), **_place(node)))
            assert isinstance(copied, ast.expr)
            return copied
        name = f"{node.func.id}__{len(self.terms)}"
        bare = replace(self.expression, lets=(), tree=node.args[0], at=(node.col_offset, node.end_col_offset or 0))
        each = _with_lets(check_again(bare), dict(self.expression.lets))
        self.terms.append(SetTerm(name, each, node.func.id))
        return ast.Name(name, ast.Load(), **_place(node))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A copy, so that the tree of the plan stays as it is."""
        fields = {}
        for key, value in ast.iter_fields(node):
            if isinstance(value, list):
                fields[key] = [self.visit(v) if isinstance(v, ast.AST) else v for v in value]
            else:
                fields[key] = self.visit(value) if isinstance(value, ast.AST) else value
        return type(node)(**fields, **_place(node))


def _place(node: ast.AST) -> dict[str, int]:
    keys = ("lineno", "col_offset", "end_lineno", "end_col_offset")
    return {key: value for key in keys if (value := getattr(node, key, None)) is not None}


def uses_outside(expression: Expression, names: Mapping[str, object]) -> bool:
    """Whether an expression whose sets are cut out asks for a tensor of the match itself."""
    own = {node.id for node in walk_names(expression.tree)}
    return bool((own | expression.names) & names.keys())
