"""The form of a step, generated from the registry of ops: real switches, choices, defaults and help."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from nicegui import events, ui

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.op import OPS, Field
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.schema import field_schema
from brainsurgery_jax.plan.source import compose, plain


class StepForm:
    """A form that passes each step to `add`."""

    def __init__(self, add: Callable[[dict[str, object]], Awaitable[None]]):
        self._add = add
        self._fields: dict[str, tuple[Field, ui.input | ui.select | ui.checkbox]] = {}
        ui.label("Add a step").props("role=heading aria-level=2").style("font-weight: 600")
        self._op = ui.select(sorted(OPS), label="Op", with_input=True, value="scale_", on_change=self._choose)
        self._op.props("dense").style("width: 100%")
        self._body = ui.column().style("width: 100%; gap: .2rem")
        self._told = ui.label("").classes("bs-error").props("role=alert")
        ui.button("Add step", on_click=self._submit).props("no-caps")
        self._help = ui.expansion("Help on the op").style("width: 100%")
        self._draw("scale_")

    def refer(self, pattern: str) -> None:
        """Write a pattern into the first key that takes one."""
        for field, element in self._fields.values():
            if field.role is not None and field.role.is_pattern and isinstance(element, ui.input):
                element.set_value(pattern)
                return

    def _choose(self, event: events.ValueChangeEventArguments[str | None]) -> None:
        if event.value:
            self._draw(event.value)

    def _draw(self, name: str) -> None:
        self._body.clear()
        self._help.clear()
        with self._body:
            self._fields = {field.key: (field, _element_of(field)) for field in OPS[name].step_fields()}
        with self._help:
            ui.label("\n".join(pages.page(OPS[name]))).classes("bs-mono").style("white-space: pre-wrap")

    async def _submit(self) -> None:
        self._told.set_text("")
        payload: dict[str, object] = {}
        for key, (field, element) in self._fields.items():
            value = element.value
            if value in (None, "") or value == field.default:
                if field.default is inspect.Parameter.empty:
                    self._told.set_text(f"'{key}' is required")
                    return
                continue
            try:
                payload[key] = _read(field, value)
            except PlanError as bad:
                self._told.set_text(f"{key}: {bad.diagnostics[0].message}")
                return
        await self._add({str(self._op.value): payload})


def _read(field: Field, value: object) -> object:
    """The value of a key as data: text is YAML, but for references, which are taken as they are."""
    if not isinstance(value, str) or (field.role is not None and not value.lstrip().startswith(("[", "{"))):
        number = field.role is not None and not (field.role.is_pattern or "::" in str(value))
        return _data(str(value)) if number and isinstance(value, str) else value
    return _data(value)


def _data(text: str) -> object:
    node = compose(text, "form")
    return None if node is None else plain(node)


def _element_of(field: Field) -> ui.input | ui.select | ui.checkbox:
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
    shown = "" if default in (None, ()) else str(default)
    element = ui.input(label, value=shown).props("dense").style("width: 100%")
    element.props["hint"] = pages.kind(field)
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
