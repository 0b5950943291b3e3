"""What a command line of plan files and overrides adds up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.plan.overrides import merge, read_plan_files, read_yaml
from brainsurgery_jax.plan.source import Node, compose, dump_yaml, plain, spans

keys = st.sampled_from("abc")
values = st.none() | st.integers(0, 9) | st.text("xyz", max_size=2)
nested = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=8)
mappings = st.dictionaries(keys, nested)


def tree(data: Any, file: str = "a.yaml") -> Node:
    node = compose(dump_yaml(data), file)
    assert node is not None
    return node


def plan(*items: str, **files: str) -> Any:
    return plain(read_plan_files(items, read=lambda path: files[path.removesuffix(".yaml")]).root)


def mistakes(*items: str, **files: str) -> tuple[Diagnostic, ...]:
    def read(path: str) -> str:
        if path.removesuffix(".yaml") not in files:
            raise FileNotFoundError(path)
        return files[path.removesuffix(".yaml")]

    with pytest.raises(PlanError, match=r"\[[a-z-]+\]") as caught:
        read_plan_files(items, read)
    return caught.value.diagnostics


def only_mistake(*items: str, **files: str) -> Diagnostic:
    (mistake,) = mistakes(*items, **files)
    return mistake


# --- files


def test_files_merge_key_by_key_in_order() -> None:
    assert plan("a.yaml", "b.yaml", a="x: {p: 1, q: 1}\ny: 1", b="x: {q: 2}\nz: 2") == {
        "x": {"p": 1, "q": 2}, "y": 1, "z": 2,
    }  # fmt: skip


def test_lists_merge_by_index() -> None:
    assert plan("a.yaml", "b.yaml", a="x: [1, {p: 1}, 3]", b="x: [9, {q: 2}]") == {"x": [9, {"p": 1, "q": 2}, 3]}


def test_a_null_item_keeps_the_earlier_item() -> None:
    assert plan("a.yaml", "b.yaml", a="x: [1, 2]", b="x: [null, 9, 10]") == {"x": [1, 9, 10]}


def test_a_null_under_a_key_replaces() -> None:
    assert plan("a.yaml", "b.yaml", a="output: out", b="output: null") == {"output": None}


def test_values_of_different_kinds_replace_each_other() -> None:
    assert plan("a.yaml", "b.yaml", a="x: {p: 1}\ny: [1]", b="x: [1]\ny: {p: 1}") == {"x": [1], "y": {"p": 1}}


@pytest.mark.parametrize("text", ["", "# nothing", "---\n", "null"])
def test_an_empty_file_is_an_empty_plan(text: str) -> None:
    assert plan("a.yaml", a=text) == {}


def test_no_items_are_an_empty_plan() -> None:
    assert plan() == {}


def test_merged_nodes_keep_the_file_that_they_come_from() -> None:
    texts = {"a.yaml": "transforms:\n  - scale: {by: 1}", "b.yaml": "transforms: [{move: {to: x}}]"}
    places = spans(read_plan_files(["a.yaml", "b.yaml"], texts.__getitem__).root)
    assert places["transforms", 0, "@key", "scale"] == Span("a.yaml", 2, 5)
    assert places["transforms", 0, "@key", "move"] == Span("b.yaml", 1, 15)


def test_a_key_that_a_later_file_sets_stands_in_that_file() -> None:
    texts = {"a.yaml": "x: 1", "b.yaml": "\nx: 2"}
    places = spans(read_plan_files(["a.yaml", "b.yaml"], texts.__getitem__).root)
    assert places["@key", "x"] == Span("b.yaml", 2, 1)


def test_a_plan_is_read_from_disk(tmp_path: Path) -> None:
    (tmp_path / "p.YML").write_bytes(b"\xef\xbb\xbfx: \xc3\xa9\r\n")
    assert plain(read_plan_files([str(tmp_path / "p.YML")]).root) == {"x": "é"}


def test_a_root_that_is_a_list_is_told_where_steps_go() -> None:
    mistake = only_mistake("a.yaml", a="\n- help")
    assert (mistake.code, mistake.span) == ("plan-not-a-mapping", Span("a.yaml", 2, 1))
    assert "this is a list of 1 item" in mistake.message
    assert "under 'transforms:'" in mistake.hint


def test_a_missing_file_names_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").touch()
    with pytest.raises(
        PlanError, match=r"merg\.yaml' does not exist\. Did you mean '.*merge\.yaml'\? \[plan-file-missing"
    ):
        read_plan_files([str(tmp_path / "merg.yaml")])


def test_a_missing_file_lists_the_plan_files_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    with pytest.raises(PlanError, match=r"Plan files in '.*': a\.yaml\."):
        read_plan_files([str(tmp_path / "something-else.yml")])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"There is no folder '.*nowhere'"):
        read_plan_files([str(tmp_path / "nowhere" / "a.yaml")])


def test_a_folder_is_no_plan_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(PlanError, match=r"cannot be read: .*plan-file-unreadable"):
        read_plan_files([str(tmp_path / "a.yaml")])


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"x: \xff")
    with pytest.raises(PlanError, match="not UTF-8 text: invalid start byte at byte 3"):
        read_plan_files([str(tmp_path / "a.yaml")])


def test_a_file_too_large_to_be_a_plan_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(PlanError, match=r"cannot be read: it has more than 67,108,864 bytes.*plan-file-unreadable"):
        read_plan_files([str(tmp_path / "a.yaml")])


def test_a_missing_file_that_a_plan_names_is_reported_at_its_place(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^outer\.yaml:3:5: the plan file"):
        read_yaml(str(tmp_path / "sub.yaml"), span=Span("outer.yaml", 3, 5))


def test_the_mistakes_of_all_files_and_overrides_come_together() -> None:
    found = mistakes("a.yaml", "gone.yaml", "b.yaml", "x..y=1", "stray", a="x: @y", b="y: 1\ny: 2")
    assert [m.code for m in found] == [
        "yaml-syntax", "plan-file-missing", "yaml-duplicate-key", "override-syntax", "plan-item",
    ]  # fmt: skip


# --- merge laws


@given(mappings)
def test_merging_with_an_empty_mapping_changes_nothing(data: Any) -> None:
    node, empty = tree(data), tree({})
    assert merge(node, empty) == node
    assert merge(empty, node) == node


@given(nested)
def test_merging_with_itself_changes_nothing(data: Any) -> None:
    assert merge(tree(data), tree(data)) == tree(data)


@given(mappings, mappings)
def test_every_key_of_either_mapping_is_in_the_merged_one(base: Any, later: Any) -> None:
    assert set(plain(merge(tree(base), tree(later)))) == set(base) | set(later)


def merged(base: Any, later: Any) -> Any:
    """What merging plain data should give, told anew."""
    if isinstance(base, dict) and isinstance(later, dict):
        both = {key: merged(base[key], later[key]) for key in base if key in later}
        return {**base, **both, **{key: value for key, value in later.items() if key not in base}}
    if isinstance(base, list) and isinstance(later, list):
        short = min(len(base), len(later))
        items = [base[i] if later[i] is None else merged(base[i], later[i]) for i in range(short)]
        return items + base[short:] + later[short:]
    return later


@given(nested, nested)
def test_nodes_merge_as_their_data_does(base: Any, later: Any) -> None:
    assert plain(merge(tree(base), tree(later))) == merged(base, later)


@given(mappings, mappings)
def test_merging_keeps_the_order_of_keys_with_new_ones_behind(base: Any, later: Any) -> None:
    assert list(plain(merge(tree(base), tree(later)))) == list({**base, **later})


@given(st.lists(mappings, max_size=3))
def test_files_on_a_command_line_merge_from_left_to_right(plans: list[Any]) -> None:
    files = {f"{at}": dump_yaml(data) for at, data in enumerate(plans)}
    expected: Any = {}
    for data in plans:
        expected = merged(expected, data)
    assert plan(*[f"{name}.yaml" for name in files], **files) == expected


@given(nested, values)
def test_a_later_scalar_wins(base: Any, later: Any) -> None:
    assert plain(merge(tree(base), tree(later))) == later


# --- overrides


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("x=8", 8), ("x=1e-6", 1e-6), ("x=yes", True), ("x=null", None), ("x=", None), ("x=~", None), ("x= 8 ", 8),
        ("x=[1, a]", [1, "a"]), ("x={p: 1}", {"p": 1}), ("x='8'", "8"), ('x="a\\tb"', "a\tb"), ("x=''", ""),
        ("x=out", "out"), ("x=~/out", "~/out"), ("x=*.weight", "*.weight"), ("x=@a", "@a"), ("x=a: b", "a: b"),
        ("x=a #b", "a #b"), ("x=- a", "- a"), ("x=a=b", "a=b"), (r"x=h\.\1", r"h\.\1"), ("x=${i}", "${i}"),
        ("x=sub.yaml", "sub.yaml"),
    ],
)  # fmt: skip
def test_the_value_of_an_override_is_a_yaml_scalar_or_in_brackets(item: str, value: Any) -> None:
    assert plan(item) == {"x": value}


def test_overrides_come_after_all_files_wherever_they_stand() -> None:
    assert plan("x=3", "a.yaml", "x=4", a="x: 1") == {"x": 4}


def test_an_empty_value_disables_the_output() -> None:
    assert plan("a.yaml", "output=", a="output: out") == {"output": None}


@pytest.mark.parametrize("path", ["a[0].b", "a.[0].b", "a[0].b."])
def test_a_path_reaches_into_lists_and_mappings(path: str) -> None:
    assert plan("p.yaml", f"{path}=2", p="a: [{b: 1, c: 1}]") == {"a": [{"b": 2, "c": 1}]}


def test_what_is_missing_on_the_way_is_made() -> None:
    assert plan("a[0][0].b-c.0=1") == {"a": [[{"b-c": {"0": 1}}]]}


def test_a_null_on_the_way_becomes_what_is_needed() -> None:
    assert plan("p.yaml", "transforms[0].dump.format=json", p="transforms: [{dump: }]") == {
        "transforms": [{"dump": {"format": "json"}}]
    }


def test_a_list_in_an_override_replaces_instead_of_merging() -> None:
    assert plan("p.yaml", "x=[9]", p="x: [1, 2, 3]") == {"x": [9]}


def test_the_index_behind_the_last_item_appends() -> None:
    assert plan("p.yaml", "x[2]=c", "x[3]=d", p="x: [a, b]") == {"x": ["a", "b", "c", "d"]}


def test_an_index_further_out_names_the_length_of_the_list() -> None:
    mistake = only_mistake("p.yaml", "x[4]=c", p="x: [a, b]")
    assert mistake.message == "index 4 is beyond the end of 'x', which is a list of 2 items"
    assert mistake.hint == "Its items are [0] to [1]; [2] appends one."


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        ("x.y=1", "'x' is the text 'out', so it has no key 'y'", "'x={key: value}'"),
        ("x[0]=1", "'x' is the text 'out', so it has no index [0]", "'x=[item, item]'"),
        ("l.y=1", "'l' is a list of 1 item, so it has no key 'y'", "Its item is [0]; [1] appends one."),
        ("l[0][1]=1", "'l[0]' is a mapping with the keys p, q, so it has no index [1]", "l[0].p"),
        ("m[0]=1", "'m' is an empty mapping, so it has no index [0]", "m.name"),
        ("e[1]=1", "'e', which is a list of 0 items", "[0] appends one."),
    ],
)
def test_an_override_that_does_not_fit_says_what_stands_there(item: str, message: str, hint: str) -> None:
    mistake = only_mistake("p.yaml", item, p="x: out\nl: [{p: 1, q: 2}]\nm: {}\ne: []")
    assert mistake.code == "override-path"
    assert message in mistake.message
    assert hint in mistake.hint


@pytest.mark.parametrize(
    ("path", "col", "message"),
    [
        ("", 1, "there is no key before the '='"),
        ("a..b", 2, "an empty key"),
        (".a", 1, "an empty key"),
        ("a b", 2, "a key cannot contain a space"),
        ("a. b", 2, "a key cannot contain a space"),
        ("a[x]", 2, "'x' is not an index"),
        ("a[]", 2, "'' is not an index"),
        ("a[9999999999]", 2, "'9999999999' is not an index"),
        ("a[-1]", 2, "the index -1 is negative"),
        ("a[0", 2, "this '[' has no ']'"),
        ("a]", 2, "this ']' has no '['"),
        ("a[0]]", 5, "this ']' has no '['"),
        ("a[0]b", 5, "a '.' is missing here"),
        ("[0].a", 1, "the path starts with an index"),
        (".".join("a" * 51), 1, "51 parts, and 50 is the most"),
    ],
)
def test_a_malformed_path_is_refused_at_its_place(path: str, col: int, message: str) -> None:
    mistake = only_mistake(f"{path}=1")
    assert mistake.code == "override-syntax"
    assert message in mistake.message
    assert mistake.span == Span(f"override '{path}=1'", 1, col)


def test_a_malformed_value_is_refused_at_its_place() -> None:
    mistake = only_mistake("x=[a-z]+")
    assert mistake.code == "yaml-syntax"
    assert mistake.span == Span("override 'x=[a-z]+'", 1, 8)


def test_a_text_that_starts_with_a_bracket_needs_quotes_that_the_shell_leaves() -> None:
    assert plan("x='[a-z]+'") == {"x": "[a-z]+"}
    assert "\"path='[a-z]+'\"" in only_mistake("x=[a-z]+").hint


def test_an_override_has_a_place_that_prints_well() -> None:
    places = spans(read_plan_files(["x.by= 2"]).root)
    assert str(places["x", "by"]) == "override 'x.by= 2':1:7"
    assert str(places["x", "@key", "by"]) == "override 'x.by= 2':1:3"
    assert spans(read_plan_files(["x=[a, b]"]).root)["x", 1].col == 7


def test_an_item_that_is_neither_file_nor_override_is_refused() -> None:
    mistake = only_mistake("stray-word")
    assert mistake.code == "plan-item"
    assert "neither a plan file (.yaml or .yml) nor an override (path=value)" in mistake.message


def test_the_name_of_a_recipe_alone_gets_the_way_to_call_it() -> None:
    assert only_mistake("merge-ties").message.endswith("Did you mean 'recipe:merge-ties'?")


@given(st.lists(st.text("ab.[]01=- {}'\"yml", max_size=12), max_size=3))
def test_any_items_make_a_plan_or_a_plan_error(items: list[str]) -> None:
    def nothing(path: str) -> str:
        raise FileNotFoundError(path)

    try:
        assert isinstance(plain(read_plan_files(items, nothing).root), dict)
    except PlanError as error:
        assert error.diagnostics


@pytest.mark.parametrize("again", ["density=0.9", "vars.density=0.9"])
def test_a_variable_is_given_once(again: str) -> None:
    text = "vars: {density: 0.1}"
    mistake = only_mistake("a.yaml", "density=0.3", again, a=text)
    assert (mistake.code, mistake.message, mistake.hint) == (
        "override-path",
        "'density' is given twice",
        "Give it once.",
    )
    assert plan("a.yaml", again, a=text) == {"vars": {"density": 0.9}}


def test_parts_of_a_variable_are_given_one_by_one() -> None:
    found = plan("a.yaml", "vars.x.a=1", "vars.x.b=2", a="vars: {x: {a: 0, b: 0}}")
    assert found == {"vars": {"x": {"a": 1, "b": 2}}}
