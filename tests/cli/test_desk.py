"""A desk without a terminal: texts in, replies out, as a browser would use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.desk import Desk, Remark
from brainsurgery_jax.engine.events import Published, Said
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.session import Session
from tests.checkpoints import write
from tests.cli.conftest import environment


@pytest.fixture
def desk(here: Path) -> Iterator[Desk]:
    write("base.safetensors", {"w": np.ones((2, 3), np.float32), "ids": np.arange(4)})
    with closing(Session.begin(bs.load({"inputs": ["base::base.safetensors"]}))) as session:
        yield Desk(session)


def names(desk: Desk) -> set[str]:
    return set(desk.session.state.spaces["base"].names)


def test_a_step_is_answered_by_a_line_and_the_session_after_it(desk: Desk):
    reply = desk.take("delete: target: ids")
    assert reply.messages == (Remark("deleted 1: ids", "done"),)
    assert (reply.next, reply.error, len(reply.session.steps)) == ("step", None, 1)
    assert names(desk) == {"w"}


def test_a_mistake_is_in_the_reply_and_steps_before_it_stand(desk: Desk):
    reply = desk.take("delete: target: ids\ndelete: target: idz")
    assert isinstance(reply.error, bs.PlanError)
    assert len(reply.session.steps) == 1


def test_reports_and_outputs_are_messages_in_order(desk: Desk):
    reply = desk.take("dump: target: ids, format: json\nsave: path: out.safetensors, alias: base")
    said, written, *_ = (m for m in reply.messages if isinstance(m, Said | Published))
    assert isinstance(said, Said)
    assert as_text(said.document) == '{"ids":{"shape":[4]}}'
    assert isinstance(written, Published)
    assert (written.path, written.tensors) == ("out.safetensors", 2)


def test_a_step_that_waits_for_consent_is_done_or_left_out_and_others_follow(desk: Desk):
    desk.take("set: preview: true")
    reply = desk.take("delete: target: ids\ndelete: target: w")
    assert reply.next == "confirm"
    reply = desk.confirm(False)
    assert reply.next == "confirm"  # the second step
    assert desk.confirm(True).next == "step"
    assert names(desk) == {"ids"}


def test_another_text_drops_the_step_that_waits(desk: Desk):
    desk.take("set: preview: true")
    assert desk.take("delete: target: ids").next == "confirm"
    desk.take("show")
    assert desk.confirm(True).messages == ()
    assert names(desk) == {"w", "ids"}


def test_leaving_warns_once_of_steps_that_would_be_lost(desk: Desk):
    desk.take("delete: target: ids")
    assert desk.leave().next == "step"
    assert desk.leave().next == "end"


def test_nothing_is_printed(desk: Desk, capsys: pytest.CaptureFixture[str]):
    for text in ("dump", "show", "help", "undo", "delete: target: idz"):
        desk.take(text)
    assert capsys.readouterr() == ("", "")


def test_repl_json_takes_and_gives_one_object_a_line(place: Path):
    requests = [
        {"take": "delete: target: ids"}, {"take": "delete: target: ids"}, {"nothing": 1},
        {"take": "set: preview: true"},
        {"take": "delete: target: h.0.w"}, {"confirm": True},
    ]  # fmt: skip
    line = [sys.executable, "-m", "brainsurgery_jax", "repl", "base.safetensors", "--json"]
    text = "".join(f"{json.dumps(request)}\n" for request in requests) + "no JSON\n"
    done = subprocess.run(line, cwd=place, env=environment(), input=text, capture_output=True, text=True, check=True)
    replies = [json.loads(row) for row in done.stdout.splitlines()]
    assert [reply["ok"] for reply in replies] == [True, False, False, True, True, True, False, True]
    assert [reply.get("next") for reply in replies] == ["step", "step", None, "step", "confirm", "step", None, "end"]
    assert replies[1]["diagnostics"][0]["place"] == {"file": "<prompt>", "line": 1, "column": 17}
    assert replies[-1]["session"]["tensors"] == {"model": 1}
    assert done.stderr == ""
