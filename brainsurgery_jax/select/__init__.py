"""Patterns over tensor names, templates for new names, slices: pure functions, no arrays and no files."""

from brainsurgery_jax.select.error import RefError, shown
from brainsurgery_jax.select.formula import FUNCTIONS
from brainsurgery_jax.select.groups import Group, gather, scatter, spread
from brainsurgery_jax.select.natural import natural_key
from brainsurgery_jax.select.pattern import Binding, Match, Pattern, compile_pattern, names_begun, names_matched
from brainsurgery_jax.select.reach import Origin, Reach, reach_of
from brainsurgery_jax.select.ref import KINDS, Ref, kind_of, name_aliases, parse_ref
from brainsurgery_jax.select.slices import Index, Range, SliceSpec, parse_slice, resolve
from brainsurgery_jax.select.template import Template, compile_template

__all__ = [
    "FUNCTIONS",
    "KINDS",
    "Binding",
    "Group",
    "Index",
    "Match",
    "Origin",
    "Pattern",
    "Range",
    "Reach",
    "Ref",
    "RefError",
    "SliceSpec",
    "Template",
    "compile_pattern",
    "compile_template",
    "gather",
    "kind_of",
    "name_aliases",
    "names_begun",
    "names_matched",
    "natural_key",
    "parse_ref",
    "parse_slice",
    "reach_of",
    "resolve",
    "scatter",
    "shown",
    "spread",
]
