"""The form of a step, generated from ops, asserts and recipes: real switches, choices, defaults and help."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from nicegui import events, ui

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.op import ASSERTS, OPS, Field, Op
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.declarations import Variable
from brainsurgery_jax.plan.recipes import find_recipe, recipe_names
from brainsurgery_jax.plan.schema import field_schema
from brainsurgery_jax.plan.source import compose, plain

FormElement = ui.input | ui.select | ui.checkbox

ASSERT, RECIPE = "assert ", "recipe "
"""What begins the choices of the form that are no ops."""


class FormKey(NamedTuple):
    """A key of the form: how it is asked for, and what a value of the element is as data."""

    key: str
    required: bool
    default: object
    draw: Callable[[], FormElement]
    read: Callable[[object], object]


class FormPage(NamedTuple):
    """The form of one choice: its keys, the help, and the step that the values of the keys make."""

    keys: Sequence[FormKey]
    help: Sequence[str]
    make: Callable[[dict[str, object]], dict[str, object]]
    pattern: str = ""
    """The first key that takes a pattern."""


def list_forms() -> list[str]:
    """What the form offers: every op, every assert, every recipe."""
    named = [f"{ASSERT}{name}" for name in sorted(ASSERTS)]
    return [*sorted(OPS.keys() - {"assert"}), *named, *(f"{RECIPE}{name}" for name in recipe_names())]


def find_form(choice: str) -> FormPage:
    """The form of a choice."""
    if choice.startswith(RECIPE):
        return _form_of_recipe(choice.removeprefix(RECIPE))
    if choice.startswith(ASSERT):
        return _form_of_op(ASSERTS[choice.removeprefix(ASSERT)], lambda step: {"assert": step})
    return _form_of_op(OPS[choice], lambda step: step)


def _form_of_op(op: Op, wrap: Callable[[dict[str, object]], dict[str, object]]) -> FormPage:
    fields = op.fields() if ASSERTS.get(op.name) is op else op.step_fields()
    keys = [
        FormKey(f.key, f.default is inspect.Parameter.empty, f.default, partial(_element_of, f), partial(_read, f))
        for f in fields
    ]
    patterns = [f.key for f in fields if f.role is not None and f.role.is_pattern]

    def make(payload: dict[str, object]) -> dict[str, object]:
        return wrap({op.name: payload[op.bare] if op.bare else payload})

    return FormPage(keys, pages.page(op), make, next(iter(patterns), ""))


def _form_of_recipe(name: str) -> FormPage:
    recipe = find_recipe(name)
    keys = [
        FormKey(n, v.default is None, _shown(v), partial(_element_of_variable, v), partial(_read_value, v))
        for n, v in recipe.variables.items()
    ]
    return FormPage(keys, recipe.about, lambda payload: {"execute": {"recipe": {name: payload}}})


class StepForm:
    """A form that passes each step to `add`."""

    def __init__(self, add: Callable[[dict[str, object]], Awaitable[None]]):
        self._add = add
        self._elements: dict[str, FormElement] = {}
        ui.label("Add a step").props("role=heading aria-level=2").style("font-weight: 600")
        self._op = ui.select(list_forms(), label="Op", with_input=True, value="scale_", on_change=self._choose)
        self._op.props("dense").style("width: 100%")
        self._body = ui.column().style("width: 100%; gap: .2rem")
        self._told = ui.label("").classes("bs-error").props("role=alert")
        ui.button("Add step", on_click=self._submit).props("no-caps")
        self._help = ui.expansion("Help on the op").style("width: 100%")
        self._draw("scale_")

    def refer(self, pattern: str) -> None:
        """Write a pattern into the first key that takes one."""
        element = self._elements.get(self._form.pattern)
        if isinstance(element, ui.input):
            element.set_value(pattern)

    def _choose(self, event: events.ValueChangeEventArguments[str | None]) -> None:
        if event.value:
            self._draw(event.value)

    def _draw(self, choice: str) -> None:
        self._form = find_form(choice)
        self._body.clear()
        self._help.clear()
        with self._body:
            self._elements = {one.key: one.draw() for one in self._form.keys}
        with self._help:
            ui.label("\n".join(self._form.help)).classes("bs-mono").style("white-space: pre-wrap")

    async def _submit(self) -> None:
        self._told.set_text("")
        payload: dict[str, object] = {}
        for one in self._form.keys:
            value = self._elements[one.key].value
            if value in (None, "") or value == one.default:
                if one.required:
                    self._told.set_text(f"'{one.key}' is required")
                    return
                continue
            try:
                payload[one.key] = one.read(value)
            except PlanError as bad:
                self._told.set_text(f"{one.key}: {bad.diagnostics[0].message}")
                return
        await self._add(self._form.make(payload))


def _read_value(one: Variable, value: object) -> object:
    """The value of a variable as data: numbers and lists are YAML, other text is taken as it is."""
    return _data(value) if isinstance(value, str) and one.type not in ("text", "path") else value


def _read(field: Field, value: object) -> object:
    """The value of a key as data: text is YAML, but for references, which are taken as they are."""
    if not isinstance(value, str) or (field.role is not None and not value.lstrip().startswith(("[", "{"))):
        number = field.role is not None and not (field.role.is_pattern or "::" in str(value))
        return _data(str(value)) if number and isinstance(value, str) else value
    return _data(value)


def _data(text: str) -> object:
    node = compose(text, "form")
    return None if node is None else plain(node)


def _element_of(field: Field) -> FormElement:
    required = field.default is inspect.Parameter.empty
    label = f"{field.key} (required)" if required else field.key
    choices = list_choices(field)
    default = None if required else field.default
    if has_switch(field):
        return ui.checkbox(label, value=bool(default))
    if choices:
        return (
            ui.select([*([] if required else [""]), *choices], label=label, value=default or None)
            .props("dense")
            .style("width: 100%")
        )
    return _input(label, "" if default in (None, ()) else str(default), pages.kind(field))


def _shown(one: Variable) -> object:
    """The default of a variable as its element shows it."""
    if one.default is None:
        return None
    return one.default.value is True if one.type == "boolean" else one.default.text


def _element_of_variable(one: Variable) -> FormElement:
    shown = _shown(one)
    if one.type == "boolean":
        return ui.checkbox(f"{one.name}: {one.help}", value=shown is True)
    label = f"{one.name} (required)" if shown is None else one.name
    return _input(label, str(shown or ""), str(one))


def _input(label: str, shown: str, hint: str) -> ui.input:
    element = ui.input(label, value=shown).props("dense").style("width: 100%")
    element.props["hint"] = hint
    return element


def _parts(schema: object) -> list[dict[str, object]]:
    if not isinstance(schema, dict):
        return []
    found = schema.get("anyOf")
    return [part for one in found for part in _parts(one)] if isinstance(found, list) else [schema]


def has_switch(field: Field) -> bool:
    """Whether a key is true or false."""
    return any(part.get("type") == "boolean" for part in _parts(field_schema(field)))


def list_choices(field: Field) -> list[str]:
    """The words that a key may be; none if it takes other values."""
    found: list[str] = []
    for part in _parts(field_schema(field)):
        listed = part.get("enum", [part["const"]] if "const" in part else [])
        found += [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    return found
