"""The dims of a layout, computed from config.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.layout.expressions import Config, SizeExpression, Value
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.reading import check_read
from brainsurgery_jax.regular_files import read_regular


class Dims(Mapping[str, Value]):
    """The dims and options of a layout. A dim that config.json does not determine is an error only when it is read."""

    def __init__(self, layout: Layout, config: Config, options: Mapping[str, Value]):
        self.fields = Fields(config, layout.places)
        self.known: dict[str, Value] = {**layout.defaults, **options}
        self.missing: dict[str, tuple[str, list[str]]] = {}
        for name, alternatives in layout.dims.items():
            self._work_out(name, alternatives)

    def _work_out(self, name: str, alternatives: tuple[SizeExpression, ...]) -> None:
        lacking: dict[str, None] = {}
        for formula in alternatives:
            absent = [n for n in sorted(formula.names) if self._of(n) is None]
            if not absent:
                self.known[name] = formula.value({n: self._of(n) for n in formula.names})
                return
            lacking.update(dict.fromkeys(absent))
        earlier = next((self.missing[n] for n in lacking if n in self.missing), None)
        self.missing[name] = earlier or (name, list(lacking))

    def _of(self, name: str) -> Value:
        return self.known[name] if name in self.known else self.fields.get(name)

    def _lacks(self, name: str, fields: list[str]) -> Refusal:
        wanted = " or ".join(f"'{f}'" for f in fields)
        near = next((near for f in fields if (near := did_you_mean(f, self.fields))), "")
        hint = "Copy the config.json of the model, or add the field to it."
        return Refusal("layout-config", f"config.json has no {wanted}, which determines {name}.{near}", hint=hint)

    def settle(self, name: str, value: Value) -> None:
        """Set an option to the value that the others determine."""
        self.known[name] = value

    def __getitem__(self, name: str) -> Value:
        if name in self.missing:
            raise self._lacks(*self.missing[name])
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.known, *self.missing))

    def __len__(self) -> int:
        return len(self.known) + len(self.missing)


class Fields(Mapping[str, Any]):
    """The fields of config.json. Those of its parts named in `places` come before its own; those of any part are also
    called `part.field`."""

    def __init__(self, config: Config, places: tuple[str, ...]):
        parts = [part for place in places if isinstance(part := config.get(place), Mapping)]
        self.all: dict[str, object] = {
            k: v for part in (config, *reversed(parts)) for k, v in part.items() if v is not None
        }
        self.all |= {
            f"{name}.{k}": v
            for name, part in config.items()
            if isinstance(part, Mapping)
            for k, v in part.items()
            if v is not None
        }

    def __getitem__(self, name: str) -> Any:
        return self.all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)


def read_config(path: str) -> dict[str, object]:
    """The mapping that a config.json holds, or the one in a model's folder. Raises Refusal."""
    place = Path(os.path.expanduser(path))
    check_read(str(place / "config.json"))
    check_read(path)
    try:
        found = parse_json(read_regular(place / "config.json" if place.is_dir() else place))
    except OSError as error:
        raise Refusal("layout-config", f"{path} cannot be read: {error.strerror}", key="config") from error
    except ValueError as error:
        raise Refusal("layout-config", f"{path} is not JSON: {error}", key="config") from error
    if not isinstance(found, dict):
        raise Refusal("layout-config", f"{path} does not hold a mapping", key="config")
    return found
