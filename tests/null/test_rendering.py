"""Documents as text and as data: the two renderers, held against what each form should look like."""

from __future__ import annotations

import json

from brainsurgery_jax.documents import (
    Branches,
    Column,
    Document,
    Entry,
    Facts,
    Grid,
    Hanging,
    NameTree,
    Parts,
    Record,
    Table,
    Text,
    show_only,
)
from brainsurgery_jax.errors import Diagnostic, Span, StoreError
from brainsurgery_jax.rendering.data import (
    as_json,
    branches_data,
    diagnostic_data,
    document_data,
    grid_data,
    record_data,
    store_error_data,
)
from brainsurgery_jax.rendering.text import as_text

LEAVES = (("h.0.w", {"shape": [2]}), ("h.1.w", {"shape": [2]}))


def test_a_table_pads_its_columns_and_escapes_line_ends():
    table = Table("differing", (("a", "f32[2]"), ("long\nname", "f32[3]", "NaN: 1 -> 0")))
    assert as_text(table) == "differing:\n  a           f32[2]\n  long\\nname  f32[3]  NaN: 1 -> 0"


def test_a_table_without_rows_is_not_drawn():
    assert as_text(Parts((Table("differing", ()), Text("same")))) == "same"


def test_facts_list_items_and_say_none_of_an_empty_list():
    facts = Facts("diff a b", (("missing in a", ("x", "y")), ("differing", ()), ("dry-run", False)), "done")
    lines = ["diff a b", "missing in a:", "  - x", "  - y", "differing:", "  - none", "dry-run: false", "done"]
    assert as_text(facts) == "\n".join(lines)


def test_a_tree_is_drawn_compactly_or_in_full_or_as_one_line_of_json():
    assert as_text(NameTree("m", LEAVES)) == "m\n└── h\n    └── [0-1]\n        └── w  shape=[2]"
    assert as_text(NameTree("", LEAVES, "tree")).count("shape=[2]") == 2
    assert as_text(NameTree("m", LEAVES, "json")) == '{"m":{"h":[{"w":{"shape":[2]}},{"w":{"shape":[2]}}]}}'


def test_data_keep_every_form_apart_by_its_kind():
    forms: tuple[Document, ...] = (Text("a"), Table("t", (("x",),)), Facts("f", (("n", 1),)), NameTree("m", LEAVES))
    found = document_data(Parts(forms))
    assert [part["kind"] for part in found["parts"]] == ["text", "table", "facts", "tree"]
    assert found["parts"][3]["tensors"] == {name: dict(leaf) for name, leaf in LEAVES}


def test_json_has_a_version_and_no_number_that_readers_refuse():
    found = json.loads(as_json(x=float("nan"), y=[float("-inf"), 1j, (1.5, None)]))
    assert found == {"schema_version": 1, "x": "nan", "y": ["-inf", "1j", [1.5, None]]}


def test_a_diagnostic_as_data_has_its_code_place_and_hint():
    found = Diagnostic("op-unknown", "there is no op 'x'", Span("plan.yaml", 3, 5), "Did you mean 'y'?")
    place = {"file": "plan.yaml", "line": 3, "column": 5}
    assert diagnostic_data(found) == {
        "code": "op-unknown", "severity": "error", "message": "there is no op 'x'", "hint": "Did you mean 'y'?",
        "place": place,
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_data_of_the_same_keys():
    found = store_error_data(StoreError("a.safetensors", "is cut off", tensor="w", remedy="Copy it again."))
    assert found["message"] == "tensor 'w': is cut off"
    assert found["place"] == {"file": "a.safetensors", "line": 0, "column": 0}
    assert found.keys() == diagnostic_data(Diagnostic("x", "y")).keys()


GRID = Grid(
    (Column("", "item", "count"), Column("key", ""), Column("bytes", "reads", "traffic"), Column("on", "where"),
     Column("device", "device", "traffic")),
    ((1, "a", 8192, ["host", "device"], 0), (10, "b", 0, [], 0)),
)  # fmt: skip


def test_a_grid_is_aligned_by_unit_in_text_and_has_numbers_in_data():
    assert as_text(GRID) == "item   reads  where\n   1  8.0 KB  host, device\n  10"
    assert grid_data(GRID) == [
        {"key": "a", "bytes": 8192, "on": ["host", "device"], "device": 0},
        {"key": "b", "bytes": 0, "on": [], "device": 0},
    ]


def test_text_has_the_first_rows_of_a_grid_and_data_all():
    short = GRID._replace(shown=1)
    assert as_text(short).splitlines()[1:] == ["   1  8.0 KB  host, device"]
    assert grid_data(short) == grid_data(GRID)


def test_a_record_has_entries_for_people_for_programs_and_for_both():
    inner = Record((Entry("n", 1, Text("one")), *show_only(Text("a remark"), None), Entry("nan", float("nan"))))
    outer = Record((Entry("rows", GRID), Entry("inner", (inner,), inner), Entry("found", Diagnostic("c", "m"))))
    assert as_text(outer) == "one\na remark"
    found = json.loads(as_json(**record_data(outer)))
    assert found["inner"] == [{"n": 1, "nan": "nan"}]
    assert found["rows"] == grid_data(GRID)
    assert found["found"] == diagnostic_data(Diagnostic("c", "m"))


def test_a_hanging_paragraph_is_folded_by_whoever_shows_it():
    paragraph = Hanging("created 2: ", "a, b")
    assert as_text(paragraph) == "created 2: a, b"
    assert as_text(paragraph, lambda head, text: [head, *text.split()]) == "created 2: \na,\nb"


def test_branches_are_a_tree_with_aligned_columns_in_text_and_values_by_name_in_data():
    columns = (Column("shape", "shape", "shape"), Column("bytes", "size", "bytes"), Column("mean", "mean", "figure"))
    rows = {"h.0": ([2], 8, 0.5), "h.1": ([2], 8, 0.5), "w": ([300, 2], 2400, None)}
    tree = Branches(columns, rows, {"step": "None"})
    lines = [
        "├── h",
        "│   └── [0-1]  [2]          8 B  mean 0.5",
        "├── step       None",
        "└── w          [300, 2]  2.3 KB",
    ]
    assert as_text(tree).splitlines() == lines
    assert len(as_text(tree._replace(compact=False)).splitlines()) == 5
    assert branches_data(tree)["h.0"] == {"shape": [2], "bytes": 8, "mean": 0.5}
    assert branches_data(tree)["w"] == {"shape": [300, 2], "bytes": 2400}
