"""Parts of the workbench without a browser: waiting, ranks, patterns, moved steps, shared checkpoints."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from threading import Event
from time import sleep

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

import yaml
from nicegui import Client, core, ui
from nicegui.page import page

import brainsurgery_jax as bs
from brainsurgery_jax.completion.plans import CutStep, cut_step
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.engine.events import StopSignal
from brainsurgery_jax.errors import Stopped, StoreError
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.low_rank import RankBench, Way
from brainsurgery_jax.web.names import BranchedNames, write_pattern
from brainsurgery_jax.web.opened import Opened, Shelf
from brainsurgery_jax.web.plan_text import move_step, remove_step
from brainsurgery_jax.web.result_cache import ResultCache, weigh
from brainsurgery_jax.web.tree_view import label_of
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.workbench import Workbench
from tests.web.apart import run_apart
from tests.web.conftest import HOSTILE, add_input, write_model

# --- waiting


def test_cancel_ends_the_wait_although_the_computation_goes_on():
    begun, may_end, told = Event(), Event(), list[object]()

    def compute(stop: StopSignal) -> int:
        begun.set()
        may_end.wait(60)
        told.append(stop.is_set())
        return 3

    async def story() -> int | None:
        core.loop = asyncio.get_running_loop()
        with Client(page("/"), request=None):
            waiting, place = Waiting(), ui.column()
            work = asyncio.create_task(waiting.run(place, "computing", compute))
            await asyncio.to_thread(begun.wait, 60)
            waiting.cancel()
            try:
                return await work
            finally:
                may_end.set()

    assert run_apart(story()) is None
    assert told in ([], [True])


@pytest.mark.parametrize("bad", [ValueError("no such pattern"), StoreError("x", "cannot be read")])
def test_a_failure_is_told_and_a_result_is_given(bad: Exception):
    def fail(stop: StopSignal) -> int:
        raise bad

    async def story() -> tuple[int | None, list[str]]:
        core.loop = asyncio.get_running_loop()
        with Client(page("/"), request=None):
            place = ui.column()
            assert await Waiting().run(place, "computing", lambda stop: 3) == 3
            found = await Waiting().run(place, "computing", fail)
            return found, [one.text for one in place.descendants() if isinstance(one, ui.label)]

    found, told = run_apart(story())
    assert found is None and told == [str(bad)]


# --- text


STEPS = (
    "inputs: [a]\ntransforms:\n- copy: {from: a, to: b}\n\n  # why\n- delete:\n    target: c\n- help: {}\noutput: d\n"
)


@pytest.mark.parametrize(
    ("at", "by", "order"), [(0, 1, [1, 0, 2]), (2, -1, [0, 2, 1]), (1, 1, [0, 2, 1]), (0, -1, [0, 1, 2])]
)
def test_a_moved_step_takes_its_lines_along(at: int, by: int, order: list[int]):
    before, after = yaml.safe_load(STEPS), yaml.safe_load(moved := move_step(STEPS, at, by))
    assert after["transforms"] == [before["transforms"][n] for n in order]
    assert (after["output"], moved.count("# why")) == ("d", 1)


def test_the_last_step_leaves_no_bare_key():
    text = remove_step("inputs: [a]\ntransforms:\n  - help: {}\noutput: b\n", 0)
    assert yaml.safe_load(text) == {"inputs": ["a"], "output": "b"}
    assert yaml.safe_load(remove_step(STEPS, 1))["transforms"] == [{"copy": {"from": "a", "to": "b"}}, {"help": {}}]


def test_a_step_takes_the_dash_above_it_along():
    text = "transforms:\n-\n  copy: {from: a, to: b}\n-\n  help: {}\n"
    assert yaml.safe_load(move_step(text, 0, 1))["transforms"] == [{"help": {}}, {"copy": {"from": "a", "to": "b"}}]
    assert yaml.safe_load(remove_step(text, 0))["transforms"] == [{"help": {}}]


def test_steps_in_brackets_stay_as_they_are():
    text = "transforms: [{help: {}}, {delete: {target: a}}]\n"
    assert move_step(text, 0, 1) == text and remove_step(text, 0) == text


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("inputs: [a]\ntransforms:\n  - sca", CutStep("inputs: [a]\ntransforms:\n", "- sca")),
        ("transforms:\n- a:\n    b: 1\n- c:\n    d", CutStep("transforms:\n- a:\n    b: 1\n", "- c:\n    d")),
        ("transforms:\n- a:\n    all:\n      - b", CutStep("transforms:\n", "- a:\n    all:\n      - b")),
        ("transforms:\n- a\noutput: x", None), ("inputs:\n- a", None), ("", None),
    ],
)  # fmt: skip
def test_the_step_at_the_cursor_is_cut_out_of_the_plan(text: str, cut: CutStep | None):
    assert cut_step(text) == cut


# --- patterns and ranks


KNOWN = [f"h.{n}.{part}.weight" for n in range(12) for part in ("a", "b")] + ["h.1.a.weightx", "w", "x.y+z"]


@pytest.mark.parametrize(
    "names",
    [
        ["w"],
        ["x.y+z"],
        ["h.1.a.weight"],
        ["h.1.a.weight", "h.11.a.weight"],
        [n for n in KNOWN if ".a.weight" in n[-9:]],
        KNOWN,
    ],
)
def test_a_pattern_of_names_matches_them_and_no_others(names: list[str]):
    pattern = write_pattern(names, KNOWN)
    assert [name for name in KNOWN if re.fullmatch(pattern, name)] == [name for name in KNOWN if name in names]


@pytest.mark.parametrize("way", ["phlora", "phlora_", "lora_extract"])
def test_the_steps_of_a_bench_make_the_ranks_that_were_chosen(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"h.{n}.w.weight" for n in range(3)]
    base = {name: rng.normal(size=(12, 10)).astype("f4") for name in names}
    save_file(base | {"other.weight": base[names[0]]}, "base.safetensors")
    tuned = {name: x + rng.normal(size=x.shape).astype("f4") for name, x in base.items()}
    save_file(tuned | {"other.weight": base[names[0]]}, "tuned.safetensors")
    pair = way == "lora_extract"
    found = bs.spectrum("base.safetensors", "tuned.safetensors" if pair else None, target="h.*")
    bench = RankBench(found)
    bench.choose_rank(2, names)
    bench.choose_rank(3, names[1:2])
    assert bench.sizes(names) == (360, (2 + 2 + 3) * 22)
    steps = bench.write_steps(way, names, ["other.weight", *names], ("base", "tuned") if pair else ("", ""))
    inputs = ["base::base.safetensors", "tuned::tuned.safetensors"] if pair else ["base.safetensors"]
    output = {"path": "out/", "alias": "adapter", "format": "peft"} if pair else "out.safetensors"
    bs.run(bs.load({"inputs": inputs, "transforms": steps, "output": output}))
    made = load_file("out/adapter_model.safetensors" if pair else "out.safetensors")
    factors = {n: x.shape for n, x in made.items() if "lora_A" in n}
    if way == "phlora_":
        assert [np.linalg.matrix_rank(made[name]) for name in names] == [2, 3, 2]
    else:
        assert sorted(shape for shape in factors.values()) == [(2, 10), (2, 10), (3, 10)]
        assert all(shape == (3, 10) for name, shape in factors.items() if "h.1" in name)


def test_a_rank_that_is_not_known_keeps_what_it_was():
    bench = RankBench(
        {"w": Spectrum((8, 8), np.array([2.0, 1.0]), captured=0.5), "nan": Spectrum((2, 2), np.full(2, np.nan))}
    )
    assert (list(bench.spectra), bench.left_out) == (["w"], ["nan"])
    assert bench.choose_energy(0.9, ["w"]) == ["w"] and bench.ranks == {"w": 1}
    assert bench.choose_energy(0.45, ["w"]) == [] and bench.ranks == {"w": 2}
    bench.choose_rank(5, ["w"])
    assert bench.energy("w") is None


# --- checkpoints of several tabs


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.safetensors")
    return Root(".")


def test_tabs_share_a_checkpoint_until_the_last_closes_it(root: Root):
    shelf = Shelf(root)
    first, second = Opened(shelf, None), Opened(shelf, None)
    one = first.open("model.safetensors")
    assert second.open("model.safetensors") is one
    first.close("model.safetensors")
    assert second.measure("model.safetensors", "wte.weight") is not None
    second.close("model.safetensors")
    assert shelf.take("model.safetensors") is not one


def test_a_file_that_changed_is_read_anew_and_the_other_tab_keeps_the_old_names(root: Root):
    shelf = Shelf(root)
    first, second = Opened(shelf, None), Opened(shelf, None)
    old = first.open("model.safetensors")
    save_file({"w": np.zeros(3, "f4")}, "model.safetensors")
    assert list(second.open("model.safetensors").avals) == ["w"] and len(old.avals) == 11


def test_what_was_measured_is_kept_as_long_as_the_checkpoint_is_open(root: Root):
    opened = Opened(Shelf(root), None)
    opened.open("model.safetensors")
    before = opened.histogram("model.safetensors", "wte.weight")
    assert opened.histogram("model.safetensors", "wte.weight") is before
    opened.open("model.safetensors")
    assert opened.histogram("model.safetensors", "wte.weight") is not before


def test_the_histograms_of_two_sides_have_the_same_bins(root: Root):
    changed = load_file("model.safetensors")
    changed["wte.weight"] *= 3
    save_file(changed, "changed.safetensors")
    opened = Opened(Shelf(root), None)
    opened.open("model.safetensors")
    opened.open("changed.safetensors")
    before, after = opened.histograms("model.safetensors", "changed.safetensors", "wte.weight")
    np.testing.assert_array_equal(before.edges, after.edges)
    assert opened.histograms("model.safetensors", "changed.safetensors", "wte.weight") == (before, after)


def test_what_a_trial_wrote_goes_with_its_tab(root: Root):
    bench = Workbench(root)
    bench.write("inputs: [model.safetensors]\ntransforms:\n- scale_: {target: wte.weight, by: 2}\n")
    tried = bench.try_plan(1)
    assert (list(bench.opened), tried.tried) == (["plan after step 1"], True)
    assert any(path.name.startswith(".brainsurgery-jax-") for path in Path().iterdir())
    bench.close_all()
    assert sorted(path.name for path in Path().iterdir()) == ["model.safetensors"]


def test_a_name_gets_its_alias_where_a_plan_has_several_inputs(root: Root):
    write_model(Path("other.safetensors"))
    bench = Workbench(root)
    assert bench.refer("model.safetensors", "w") == "w"
    assert add_input(bench, "model.safetensors") == "model"
    assert bench.refer("model.safetensors", "w") == "w"
    assert add_input(bench, "other.safetensors") == "model_2"
    assert bench.refer("other.safetensors", "w") == "model_2::w"


# --- what is kept, marked and cancelled


def test_results_are_kept_up_to_a_number_of_bytes_and_the_oldest_go_first():
    made = list[str]()

    def measure(kept: ResultCache, name: str) -> np.ndarray:
        return kept.once(("model",), name, lambda: made.append(name) or np.zeros(1000, "u1"))

    kept = ResultCache(most=2500)
    for name in ("a", "b", "a", "c", "a", "b"):  # two fit: `c` drives `b` out, which was used before `a`
        measure(kept, name)
    assert made == ["a", "b", "c", "b"]
    assert kept.nbytes <= 2500
    kept.forget("model")
    assert kept.nbytes == 0 and kept.get(("model",), "a") is None


def test_a_result_that_is_larger_than_the_room_is_given_and_not_kept():
    kept = ResultCache(most=10)
    assert kept.once(("model",), "large", lambda: np.ones(1000)).sum() == 1000
    assert kept.nbytes == 0


def test_a_view_of_an_array_and_what_holds_arrays_weigh_what_they_hold():
    whole = np.zeros(1000)
    assert 8000 <= weigh(whole) < 8300
    assert 4000 <= weigh(whole[:500]) < 4300
    assert weigh({"a": [whole], "b": (whole,)}) >= 16000
    found = Spectrum((1000, 1000), whole)
    assert weigh(found) >= 8000


def test_nodes_above_a_broken_tensor_count_it_and_the_tensor_says_what_is_wrong():
    avals = {f"h.{n}.{part}": Aval((2,), FLOAT32) for n in range(3) for part in ("w", "b")} | {"x": Aval((2,), FLOAT32)}
    tree, problems = BranchedNames(avals), {"h.1.w": "1 NaN", "x": "zero everywhere"}
    h, x = tree.children()
    assert label_of(h, problems).endswith("⚠ 1 broken")
    assert label_of(x, problems) == "x  f32[2]  ⚠ zero everywhere"
    (layers,) = tree.children(h.key, h.pattern)
    assert layers.copies == 3 and label_of(layers, problems).endswith("⚠ 1 broken")
    assert "⚠" not in label_of(h, {"x": "zero everywhere"})


def test_a_tensor_that_is_measured_is_marked_and_health_measures_all(root: Root):
    broken = load_file("model.safetensors")
    broken["wte.weight"][0] = np.nan
    save_file(broken, "broken.safetensors")
    bench = Workbench(root)
    bench.open("broken.safetensors")
    assert bench.opened.problems("broken.safetensors") == {}
    bench.opened.measure("broken.safetensors", "wte.weight")
    assert bench.opened.problems("broken.safetensors") == {"wte.weight": "8 NaN"}
    assert set(bench.opened.find_problems("broken.safetensors")) == {"wte.weight", HOSTILE}  # one that is constant
    bench.close_all()


def test_a_report_that_is_cancelled_is_not_written(root: Root):
    pytest.importorskip("matplotlib")
    bench, stop = Workbench(root), Event()
    bench.open("model.safetensors")
    stop.set()
    for sides in (("model.safetensors", None), ("model.safetensors", "model.safetensors")):
        with pytest.raises(Stopped):
            bench.write_report(*sides, stop)
    assert not Path(bench.scratch("report.html")).exists()
    bench.close_all()


def test_a_page_that_is_closed_ends_what_it_waits_for():
    begun, stopped = Event(), list[bool]()

    def compute(stop: StopSignal) -> None:
        begun.set()
        while not stop.is_set():
            sleep(0.01)
        stopped.append(True)

    async def story() -> None:
        core.loop = asyncio.get_running_loop()
        with Client(page("/"), request=None) as client:
            work = asyncio.create_task(Waiting().run(ui.column(), "computing", compute))
            await asyncio.to_thread(begun.wait)
            client.delete()
            await work

    run_apart(story())
    assert stopped == [True]
