"""Completion, without a terminal: what is offered behind a text, for a session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.cli.prompt.glance import glance
from brainsurgery_jax.completion.candidates import MOST, Command, complete, folded
from brainsurgery_jax.completion.partial import mended, place_of
from brainsurgery_jax.desk import COMMANDS, is_unfinished
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.session import Session
from tests.checkpoints import write

LAYERS = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc")


@pytest.fixture
def model(here: Path) -> Iterator[Session]:
    """One input of 50 tensors: 12 layers of four, and two more."""
    names = [f"h.{i}.{layer}.weight" for i in range(12) for layer in LAYERS] + ["ln_f.weight", "wte.weight"]
    write("gpt.safetensors", {n: np.zeros((2, 3), np.float32) for n in names})
    (here / "out").mkdir()
    with closing(Session.begin(bs.load({"inputs": ["gpt::gpt.safetensors"]}))) as session:
        yield session


@pytest.fixture
def two(here: Path) -> Iterator[Session]:
    write("a.safetensors", {"w": np.zeros(2, np.float32), "x.y": np.zeros(2, np.float32)})
    with closing(Session.begin(bs.load({"inputs": ["a::a.safetensors", "b::a.safetensors"]}))) as session:
        yield session


def offered(session: Session, text: str) -> list[str]:
    """The texts that result, less what stood there already."""
    return [text[: len(text) + c.start] + c.text for c in complete(text, session, COMMANDS)]


def words(session: Session, text: str) -> list[str]:
    """What stands in the place of the word that was begun."""
    return [c.text for c in complete(text, session, COMMANDS)]


def test_the_start_of_a_line_offers_every_op_and_every_command(model: Session):
    shown = {c.display for c in complete("", model, COMMANDS)}
    assert shown == {*OPS, *COMMANDS}


def test_config_offers_the_other_json_files_beside_the_weights(here: Path):
    Path("m").mkdir()
    write("m/model.safetensors", {"w": np.zeros(2, np.float32)})
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "private.json"):
        Path("m", name).write_text("{}")
    with closing(Session.begin(bs.load({"inputs": ["m::m"]}))) as session:
        assert words(session, "config: {file: ") == ["generation_config.json", "tokenizer_config.json"]
        assert words(session, "config: {file: t") == ["tokenizer_config.json"]


def test_ops_come_with_their_first_line(model: Session):
    (move,) = complete("mov", model)
    assert (move.text, move.start, move.meta) == ("move: ", -3, OPS["move"].doc.splitlines()[0])


def test_required_keys_come_first_and_none_twice(model: Session):
    assert words(model, "copy: ") == ["from: ", "to: ", "over: ", "if_missing: "]
    assert words(model, "copy: from: wte.weight, ") == ["to: ", "over: ", "if_missing: "]
    assert words(model, "copy: {to: x, ") == ["from: ", "over: ", "if_missing: "]


def test_many_names_are_folded_at_the_next_dot(model: Session):
    assert words(model, "delete: target: ") == ["h.", "ln_f.weight", "wte.weight"]
    assert words(model, "delete: target: h.") == [f"h.{i}." for i in range(12)]
    (first, *_) = complete("delete: target: h.", model)
    assert first.meta == "4 tensors"


def test_few_names_are_offered_whole_with_shape_and_dtype(model: Session):
    found = complete("delete: target: h.10.attn", model)
    assert [c.text for c in found] == ["h.10.attn.c_attn.weight", "h.10.attn.c_proj.weight"]
    assert found[0].meta == "f32[2,3]"


def test_a_name_goes_on_behind_a_regex(model: Session):
    found = complete(r"delete: target: h\.(\d+)\.mlp", model)
    assert [(c.text, c.meta) for c in found] == [(r"h\.(\d+)\.mlp\.c_fc\.weight", "12 tensors")]


def test_a_regex_that_is_not_whole_yet_offers_nothing(model: Session):
    assert words(model, r"delete: target: h\.(\d") == []


def test_a_regex_that_would_take_for_ever_is_given_up(model: Session):
    assert words(model, "delete: target: (.*)*(.*)*(.*)*(.*)*(.*)*Z") == []


def test_a_whole_name_offers_the_next_key(model: Session):
    assert words(model, "copy: from: wte.weight") == ["wte.weight", "wte.weight, to: "]


def test_after_a_value_the_missing_keys_are_offered_with_their_comma(model: Session):
    assert words(model, "copy: from: wte.weight ") == [", to: ", ", over: ", ", if_missing: "]


def test_a_template_offers_what_the_pattern_captured(model: Session):
    assert words(model, r"copy: from: h.(\d+).(?P<n>.*), to: x.")[:2] == [r"x.\1", r"x.\g<n>"]
    assert words(model, r"copy: from: h.(\d+).ln_1.weight, to: ")[0] == r"h.(\d+).ln_1.weight"


def test_behind_a_brace_of_a_template_the_words_of_a_formula_are_offered(model: Session):
    step = r"copy: from: h.(\d+).(?P<n>.*), to: x.${"
    assert words(model, step) == [r"x.${\1", "x.${n", "x.${replace(", "x.${lower(", "x.${upper("]
    assert words(model, step + "lower(n") == ["x.${lower(n)", "x.${lower(n"]
    assert words(model, step + "n") == ["'x.${n}'", "x.${n"]
    assert words(model, step + "lo") == ["x.${lower("]
    assert r"x.${\1+n" in words(model, step + r"\1+")
    assert words(model, step + "n}.")[:2] == [r"'x.${n}.\1'", r"'x.${n}.\g<n>'"]
    assert words(model, "copy: from: [h, $i, '~a,b::(.)_(.)'], to: [x, ${")[:3] == ["${i", "${a", "${b"]


def test_segments_of_a_structured_reference_fit_those_before_them(model: Session):
    assert words(model, "copy: from: [") == ["h", "ln_f", "wte", "$i", "*rest"]
    assert words(model, "copy: from: [h, $i, ") == ["attn", "ln_1", "mlp", "$j", "*rest"]
    assert words(model, "copy: from: [h, $i, attn, c_") == ["c_attn", "c_proj"]


def test_numbers_among_segments_are_quoted_since_they_are_texts(model: Session):
    assert words(model, "copy: from: [h, ")[:3] == ["'0'", "'1'", "'2'"]


def test_a_structured_template_offers_the_tokens_of_the_pattern(model: Session):
    assert words(model, "copy: from: [h, $i, *rest], to: [x, ")[:2] == ["$i", "*rest"]


def test_tokens_that_yaml_would_misread_are_quoted_in_yaml_alone(model: Session):
    assert "'*rest'" in words(model, "copy:\n  from: [h, ")
    assert "*rest" in words(model, "copy: from: [h, ")


def test_with_several_inputs_aliases_come_first(two: Session):
    assert words(two, "delete: target: ") == ["a::", "b::"]
    assert words(two, "delete: target: b::") == ["b::w", "b::x.y"]


def test_dtypes_are_known_by_all_their_names(model: Session):
    assert words(model, "cast_: target: wte.weight, to: bf1") == ["bf16"]
    assert words(model, "cast_: target: wte.weight, to: half") == ["half"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("fill: mode: ", "constant"),
        ("dump: format: ", "compact"),
        ("dump: verbosity: s", "shape"),
        ("save: overwrite: ", "true"),
        ("load: path: x, format: t", "torch"),
        ("prefixes: mode: r", "remove"),
        ("set: dry-run: ", "true"),
        ("copy: if_missing: ", "error"),
    ],
)
def test_words_that_a_key_takes_are_offered(model: Session, text: str, first: str):
    assert words(model, text)[0] == first


def test_operators_of_assert_are_offered_wherever_one_may_stand(model: Session):
    for text in ("assert: ", "assert: {", "assert: all: [{exists: x}, {", "assert:\n  not:\n    "):
        assert {c.display for c in complete(text, model)} >= set(ASSERTS), text
    assert words(model, "assert: not: ex") == ["{exists: "]


def test_keys_of_a_nested_operator_are_offered(model: Session):
    assert words(model, "assert: equal: {")[:2] == ["left: ", "right: "]
    assert words(model, "assert: all: [{exists: x}, {dtype: {of: wte.weight, ") == ["is: "]
    assert words(model, "assert: {dtype: {of: '.*', is: bfl") == ["bfloat16"]


def test_files_and_folders_are_offered_where_a_path_is_asked_for(model: Session):
    assert words(model, "load: path: ") == ["out/", "gpt.safetensors"]
    assert words(model, "load: g") == ["gpt.safetensors"]
    assert words(model, "save-plan ou") == ["out/"]


def test_aliases_are_offered_where_an_alias_is_asked_for(two: Session):
    assert words(two, "save: path: x, alias: ") == ["a", "b"]


def test_the_mapping_form_of_a_reference_is_known(two: Session):
    assert words(two, "copy: {from: {") == ["alias: ", "name: ", "slice: ", "kind: "]
    assert words(two, "copy: {from: {alias: b, name: x") == ["x.y"]


def test_steps_within_execute_are_steps(model: Session):
    assert words(model, "execute: transforms: [{mov") == ["move: "]
    assert words(model, "execute: transforms: [{move: {from: wte.w") == ["wte.weight"]


def test_blocks_offer_what_lines_offer(model: Session):
    assert words(model, "copy:\n  ") == ["from: ", "to: ", "over: ", "if_missing: "]
    assert words(model, "copy:\n  from: wte.weight\n  t") == ["to: "]
    assert words(model, "- copy: {from: a, to: b}\n- delete:\n    target: wte") == ["wte.weight"]


def test_inside_quotes_nothing_is_quoted_again(model: Session):
    assert words(model, "delete: target: 'wte") == ["wte.weight"]


def test_energy_is_a_form_of_rank(model: Session):
    assert words(model, "phlora_: target: wte.weight, rank: ") == ["{energy: "]


def test_help_offers_ops_and_operators(model: Session):
    assert words(model, "help mo") == ["move"]
    assert words(model, "help assert.eq") == ["assert.equal"]


def test_without_commands_none_is_offered(model: Session):
    assert [c.display for c in complete("und", model)] == []
    assert [c.display for c in complete("und", model, {"undo": Command("back")})] == ["undo"]


def test_nothing_is_offered_where_no_step_could_go_on(model: Session):
    for text in ("copy: from: a to", "nonsense: ", "copy: nonsense: ", "!!", "copy: {from: a} x", "]"):
        assert words(model, text) == []


ANY = [
    "copy",
    ":",
    " ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "'",
    '"',
    "\n",
    "- ",
    "  ",
    "from",
    "h.0",
    "$i",
    "*",
    "\\",
    "assert",
    "all",
    "#",
]


def test_no_text_at_all_is_too_odd_to_complete_and_to_look_at(model: Session):
    rng = np.random.default_rng(0)
    for _ in range(3000):
        text = "".join(rng.choice(ANY, size=rng.integers(1, 9)))
        complete(text, model, COMMANDS)
        glance(text, model)
        is_unfinished(text)


def test_every_prefix_of_every_example_can_be_completed(model: Session):
    for op in OPS.values():
        for line in op.doc.splitlines():
            example = line.strip().removeprefix("Example: `").removesuffix("`") if "Example: `" in line else ""
            for end in range(len(example)):
                place = place_of(example[:end])
                assert place is None or example[: place.start] + place.word == example[:end]
                complete(example[:end], model)


def test_at_most_so_many_names_are_offered_one_by_one():
    names = [f"{kind}.{i}" for kind in "ab" for i in range(MOST)]
    assert folded(names[:MOST]) == [(f"a.{i}", 1, True) for i in range(MOST)]
    assert folded(names) == [("a.", MOST, False), ("b.", MOST, False)]


def test_shared_segments_are_not_a_choice():
    names = [f"model.layers.{i}.w" for i in range(30)]
    assert folded(names)[:2] == [("model.layers.0.w", 1, True), ("model.layers.1.w", 1, True)]


# --- What is cut short


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("copy: from: [a, b", "copy: from: [a, b]"),
        ("copy: {from: a, to: 'x", "copy: {from: a, to: 'x'}"),
        ("copy: from: a, ", "copy: from: a"),
        ("assert: all: [{exists: a}, {dt", "assert: all: [{exists: a}]"),
        ("copy:\n  from: a\n  to:", "copy:\n  from: a"),
    ],
)
def test_a_text_that_is_cut_short_is_mended(text: str, whole: str):
    assert whole in mended(text)


@pytest.mark.parametrize(
    "text", ["delete:", "- delete: {target: x}", "copy: {from: a,", "copy:\n  from: a", "dump: 'a"]
)
def test_these_texts_ask_for_another_line(text: str):
    assert is_unfinished(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dump",
        "dump:",
        "delete: target: x",
        "undo",
        "copy:\n  from: a\n",
        "nonsense:",
        "dump\ncopy: from: a, to: b",
        "copy: {\nfrom: a}",
    ],
)
def test_these_texts_are_whole(text: str):
    assert not is_unfinished(text)


# --- The line below


@pytest.mark.parametrize(
    ("text", "mood", "told"),
    [
        ("", "", ""),
        ("co", "", ""),
        ("copy", "dim", OPS["copy"].doc.splitlines()[0]),
        ("mive", "bad", "there is no op 'mive'"),
        ("undo", "dim", COMMANDS["undo"].does),
        ("copy: from: wt", "dim", "from matches nothing yet; still needs to"),
        ("copy: from: wte.weight", "dim", "from matches 1: wte.weight; still needs to"),
        ("copy: from: wte.weight, to: x", "good", "creates 1: x"),
        ("copy: from: [wte, weight", "dim", "from matches 1: wte.weight; still needs to"),
        ("dump: target: wte.*", "good", "target matches 1: wte.weight"),
        ("assert: exists: nothing", "bad", "assert.exists: no tensor matches 'nothing' in 'gpt'"),
        ("save: x.safetensors", "good", "writes x.safetensors"),
        ("load: path: none, alias: b", "dim", "there is no none"),
        ("delete: target: h.*", "good", "deletes 48: "),
    ],
)
def test_the_line_below_tells_what_the_text_would_do(model: Session, text: str, mood: str, told: str):
    found = glance(text, model)
    assert (found[0], found[1][: len(told)]) == (mood, told)


@pytest.mark.parametrize(
    "text",
    [
        "delete: target: (?:a|bc){300000}",
        "delete: target: " + "(?:" * 250 + "a",
        "copy: from: " + "(?:" * 250 + "a" + ")*" * 250 + ", to: x",
        "assert: " + "{not: " * 300,
        "[" * 3000,
    ],
)
def test_a_text_that_would_be_refused_offers_nothing_and_breaks_nothing(model: Session, text: str):
    assert words(model, text) == []
    is_unfinished(text)
    glance(text, model)


def test_a_pattern_that_is_no_list_of_texts_captures_nothing(model: Session):
    assert all(not text.startswith(("$", "*")) for text in words(model, "copy: from: [1, [2]], to: [h, "))
