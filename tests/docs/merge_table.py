"""The table of merge methods that the documentation has, made of their records."""

from __future__ import annotations

from brainsurgery_jax.merging.method import MergeMethod
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.table import METHODS


def _default(parameter: MergeParameter) -> str:
    match parameter.default:
        case None:
            return "required"
        case bool(value):
            return str(value).lower()
        case "":
            return "required" if parameter.each else "none"  # what each model has of its own nothing else can stand for
        case value:
            return f"{value:g}" if isinstance(value, float | int) else value


def _models(method: MergeMethod) -> str:
    count = f"{method.fewest}" if method.fewest == method.most else f"{method.fewest} or more"
    if method.most < method.fewest or method.most == 1:
        count = "1"
    return {"needed": f"base, {count}", "possible": f"{count}; base possible", "none": count}[method.base]


def _row(method: MergeMethod) -> str:
    shown = ", ".join(
        f"`{name}`{'*' if parameter.each else ''} ({_default(parameter)})"
        for name, parameter in method.parameters.items()
    )
    link = f" [[paper]]({method.reference})" if method.reference.startswith("http") else ""
    return f"| `{method.name}` | {method.doc}{link} | {_models(method)} | {shown} |"


def table() -> str:
    """A row for each method."""
    head = ["| method | what it is | models | parameters (default) |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_row, METHODS.values())])


def parameters() -> str:
    """What each parameter means, where methods differ once for each meaning."""
    found: dict[tuple[str, str], list[str]] = {}
    for method in METHODS.values():
        for name, parameter in method.parameters.items():
            found.setdefault((name, parameter.doc), []).append(method.name)
    return "\n".join(f"- `{name}` ({', '.join(methods)}): {doc}" for (name, doc), methods in found.items())
