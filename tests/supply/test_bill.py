"""The bill of materials and the hashes: all that an installation holds, each version pinned, each file checkable."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.cli.conftest import ROOT
from tools.sbom import NAME, bill, closure

PYTHONS = sorted(path.stem for path in (ROOT / "constraints").glob("python*.txt"))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return bill()


def test_the_bill_names_every_package_that_is_needed_once(found: dict[str, Any]):
    names = [each["name"] for each in found["components"]]
    assert len(names) == len(set(names))
    assert {"jax", "numpy", "orbax-checkpoint", "safetensors", "typer"} <= set(names)
    assert "torch" not in names


def test_the_bill_knows_who_needs_whom(found: dict[str, Any]):
    refs = {each["bom-ref"] for each in (*found["components"], found["metadata"]["component"])}
    below = {each["ref"]: each["dependsOn"] for each in found["dependencies"]}
    assert below.keys() == refs
    assert {ref for each in below.values() for ref in each} | {found["metadata"]["component"]["bom-ref"]} == refs


def test_the_bill_says_versions_and_addresses_of_packages(found: dict[str, Any]):
    for each in found["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["serialNumber"])


def test_two_bills_of_one_environment_are_the_same(found: dict[str, Any]):
    assert bill() == found


def test_an_extra_brings_what_it_needs():
    assert "torch" in closure(NAME, ["torch"])


def test_the_bill_is_printed_as_json(tmp_path: Path):
    import json

    out = subprocess.run([sys.executable, ROOT / "tools/sbom.py"], capture_output=True, check=True, cwd=tmp_path).stdout
    assert json.loads(out)["metadata"]["component"]["name"] == NAME


def pinned(path: Path) -> dict[str, str]:
    rows = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in rows}


@pytest.mark.parametrize("python", PYTHONS)
def test_hashed_versions_are_those_that_the_tests_run_with(python: str):
    hashed, known = (pinned(ROOT / "constraints" / place / f"{python}.txt") for place in ("hashes", ""))
    assert hashed
    assert hashed.items() <= known.items()


@pytest.mark.parametrize("python", PYTHONS)
def test_every_version_has_hashes_and_nothing_else_is_in_the_file(python: str):
    text = (ROOT / "constraints/hashes" / f"{python}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"\S+==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line)
    ] == []


def test_what_is_installed_here_is_in_the_file_of_this_python():
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if python not in PYTHONS:
        pytest.skip("no constraints for this Python")
    assert closure(NAME).keys() - {NAME} <= pinned(ROOT / "constraints/hashes" / f"{python}.txt").keys()
