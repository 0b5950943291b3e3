"""`run --lock`, `verify`, `replay` and the rest at the command line: exit codes, text and JSON."""

from __future__ import annotations

import json

from tests.cli.conftest import Command

PLAN = ("inputs=[base::base.safetensors]", "output={path: out.safetensors, overwrite: true}")


def test_an_output_is_locked_verified_and_made_again(command: Command):
    assert command("run", *PLAN, "--lock").code == 0
    for word in ("verify", "replay"):
        found = command(word, "out.safetensors", "--json")
        told = json.loads(found.out)
        assert found.code == 0 and told["ok"] and told["schema_version"] == 1 and told["differences"] == []


def test_verify_ends_with_1_and_the_names_of_tensors_that_differ(command: Command):
    command("run", *PLAN, "--lock")
    command("run", *PLAN, "transforms=[{scale_: {target: '.*', by: 0}}]")
    found = command("verify", "out.safetensors")
    assert found.code == 1 and "has other elements" in found.out and "from out.safetensors.lock.json" in found.err


def test_verify_ends_with_3_without_a_lock(command: Command):
    found = command("verify", "base.safetensors")
    assert found.code == 3 and "has no lock" in found.err


def test_replay_takes_inputs_by_alias(command: Command):
    command("run", *PLAN, "--lock")
    assert command("replay", "out.safetensors", "--input", "base=base.safetensors").code == 0
    assert command("replay", "out.safetensors", "--input", "base").code == 2
    unknown = command("replay", "out.safetensors", "--input", "other=base.safetensors")
    assert unknown.code == 1 and "the lock has no input 'other', but: base" in unknown.err


def test_a_run_that_can_be_resumed_publishes_and_leaves_nothing(command: Command):
    assert command("run", *PLAN, "--resume").code == 0
    assert command("verify", "out.safetensors").code == 3
