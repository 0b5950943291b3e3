"""The natural order of names."""

from __future__ import annotations

from brainsurgery_jax.select import natural_key


def test_numbers_in_names_count_by_their_size() -> None:
    assert sorted(["h.10.w2", "h.2.w", "h.10.w10", "h.1.w"], key=natural_key) == [
        "h.1.w", "h.2.w", "h.10.w2", "h.10.w10",
    ]  # fmt: skip


def test_leading_zeros_do_not_make_a_number_larger() -> None:
    assert sorted(["a010", "a9", "a0"], key=natural_key) == ["a0", "a9", "a010"]


def test_a_number_of_any_length_can_be_sorted() -> None:
    long = "1" + 5000 * "0"
    assert sorted([f"a{long}", "a2"], key=natural_key) == ["a2", f"a{long}"]


def test_text_without_numbers_is_sorted_as_it_is() -> None:
    assert sorted(["b", "a.c", "a"], key=natural_key) == ["a", "a.c", "b"]
