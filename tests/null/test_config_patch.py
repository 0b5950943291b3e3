"""Changes to a config as values: what is read is what was written, and what is changed is a new config."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.config_patch import (
    KEYS,
    Change,
    apply_change,
    merge_changes,
    patch_mapping,
    read_change,
    write_change,
)

WORDS = st.sampled_from(["a", "b", "a.b", *KEYS])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=2), lambda v: st.lists(v) | st.dictionaries(WORDS, v)
)
CONFIGS = st.dictionaries(WORDS, VALUES)
CHANGES = st.builds(Change, st.sampled_from(["", "a", "a.b"]), st.lists(WORDS).map(tuple), CONFIGS)


@given(CHANGES)
def test_a_change_that_is_written_reads_as_it_was(change: Change):
    assert read_change(write_change(change)) == change


@given(CONFIGS, CONFIGS)
def test_a_patch_leaves_the_config_that_it_is_applied_to(config: dict[str, Any], patch: dict[str, Any]):
    before = copy.deepcopy(config)
    made = apply_change(config, Change(patch=patch))
    assert config == before
    assert set(made) == {*config, *patch}


@given(CONFIGS, CONFIGS)
def test_a_patch_makes_no_difference_a_second_time(config: dict[str, Any], patch: dict[str, Any]):
    once = patch_mapping(config, patch)
    assert patch_mapping(once, patch) == once


@given(CONFIGS, CONFIGS, st.dictionaries(WORDS, st.integers()))
def test_of_two_changes_that_are_merged_the_second_has_the_last_word(
    config: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
):
    merged = merge_changes(Change(patch=first), second)
    assert apply_change(config, merged) == patch_mapping(patch_mapping(config, first), second)


@given(CONFIGS)
def test_a_key_that_is_removed_is_gone_and_all_else_stays(config: dict[str, Any]):
    for key in config:
        assert apply_change(config, Change(remove=(key,))) == {k: v for k, v in config.items() if k != key}
