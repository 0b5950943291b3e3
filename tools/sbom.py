"""Print a software bill of materials (CycloneDX 1.6, JSON): this package and all that it needs, as they are installed.

    python tools/sbom.py [EXTRA ...]

Two runs in one environment print the same. Format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "brainsurgery-jax"


def needs(found: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a distribution needs here, with these extras."""
    for text in found.requires or ():
        requirement = Requirement(text)
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield requirement


def closure(name: str, extras: Iterable[str] = ()) -> dict[str, tuple[Distribution, set[str]]]:
    """All that a distribution needs, itself included: each with the names of what it needs itself."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    waiting = [(canonicalize_name(name), frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"sbom: {name} is needed and not installed; install it, or ask for fewer extras")
        below = [(canonicalize_name(r.name), frozenset(r.extras)) for r in needs(one, wanted)]
        found.setdefault(name, (one, set()))[1].update(other for other, _ in below)
        waiting += [each for each in dict.fromkeys(below) if each not in seen]
        seen.update(below)
    return found


def component(name: str, found: Distribution) -> dict[str, Any]:
    """A distribution as a component."""
    purl = f"pkg:pypi/{name}@{found.version}"
    told: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": found.version, "purl": purl}
    for expression in found.metadata.get_all("License-Expression", ()):
        return told | {"licenses": [{"expression": expression}]}
    prefix = "License :: OSI Approved :: "
    names = [text.removeprefix(prefix) for text in found.metadata.get_all("Classifier", ()) if text.startswith(prefix)]
    return told | ({"licenses": [{"license": {"name": name}} for name in names]} if names else {})


def bill(extras: Iterable[str] = ()) -> dict[str, Any]:
    """The bill of this package with these extras, of what is installed."""
    found = dict(sorted(closure(NAME, extras).items()))
    components = {name: component(name, one) for name, (one, _) in found.items()}
    refs = {name: told["bom-ref"] for name, told in components.items()}
    own = components.pop(NAME) | {"type": "application"}
    told = {
        "metadata": {"component": own},
        "components": list(components.values()),
        "dependencies": [
            {"ref": refs[n], "dependsOn": sorted(refs[o] for o in below)} for n, (_, below) in found.items()
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(told, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", **head, **told}


if __name__ == "__main__":
    print(json.dumps(bill(sys.argv[1:]), indent=2))
