"""`inspect --fingerprint`: what it prints is what an input of a plan may say."""

from __future__ import annotations

import json

import brainsurgery_jax as bs
from tests.cli.conftest import Command


def test_inspect_prints_the_fingerprint_alone_and_a_plan_accepts_it(command: Command):
    plain = command("inspect", "base.safetensors", "--fingerprint")
    assert (plain.code, plain.err) == (0, "")
    told = json.loads(command("inspect", "base.safetensors", "--fingerprint", "--json").out)
    found = told["fingerprint"]
    assert plain.out == f"{found}\n"
    inputs = [{"path": "base.safetensors", "fingerprint": found}]
    bs.load({"inputs": inputs, "transforms": [], "output": "again.safetensors"}).run()
    assert bs.fingerprint("again.safetensors") == found
