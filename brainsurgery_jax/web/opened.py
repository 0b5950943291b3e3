"""The checkpoints that are open: one source for all tabs that look at a path, and what was measured of it.

It knows no browser. Every measurement takes a signal that ends it early, and is made once as long as the tab keeps the
checkpoint open and there is room for the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock

from brainsurgery_jax import api
from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.comparison import Difference, diff
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.looking.health import find_problems
from brainsurgery_jax.looking.heat_maps import HeatMap, Window, heat_map
from brainsurgery_jax.looking.histograms import Histogram, histogram, histograms_on_one_span
from brainsurgery_jax.looking.spectra import Spectrum, spectrum
from brainsurgery_jax.looking.stats import stats
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.plan.source import compose, plain
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.names import BranchedNames
from brainsurgery_jax.web.result_cache import ResultCache

CELLS = 64
"""Cells of a heat map on each side."""


class OpenCheckpoint:
    """A checkpoint that tabs look at, and its tree of names. `tried`: it is what a plan makes, and no input."""

    def __init__(self, path: str, checkpoint: Checkpoint, *, tried: bool = False):
        self.path, self.checkpoint, self.tried = path, checkpoint, tried
        self.avals = checkpoint.avals
        self.nbytes = sum(aval.nbytes for aval in self.avals.values())
        self.tree = BranchedNames(self.avals)

    def search(self, pattern: str) -> list[str]:
        """The names that match a regular expression, or a structured pattern written as a YAML list. All for none.
        Raises ValueError or PlanError for a pattern that cannot be read."""
        return list(self.choose(pattern))

    def choose(self, pattern: str) -> Checkpoint:
        """The part of the checkpoint that matches. See `search`."""
        return self.checkpoint.select(read_pattern(pattern)) if pattern.strip() else self.checkpoint


def read_pattern(text: str) -> str | list[str]:
    """A pattern as it is typed: a structured one is a list of YAML. Raises PlanError."""
    if not text.lstrip().startswith("["):
        return text
    found = api.load(compose(f"vars: {{pattern: {text}}}", "pattern")).variables
    data = plain(found) if found is not None else {}
    tokens = data.get("pattern") if isinstance(data, dict) else None
    return [str(token) for token in tokens] if isinstance(tokens, list) else [text]


class Shelf:
    """The checkpoints that any tab has open: a header is read, and its names are sorted, once for all tabs."""

    def __init__(self, root: Root):
        self._root, self._lock = root, Lock()
        self._known: dict[str, OpenCheckpoint] = {}
        self._users: dict[OpenCheckpoint, int] = {}

    def take(self, path: str) -> OpenCheckpoint:
        """Open a checkpoint below the root, or find it open and unchanged. Raises StoreError."""
        with self._lock:
            found = self._known.get(path)
            if found is not None:
                self._users[found] += 1  # so that no other tab closes it meanwhile
        if found is not None:
            if _is_unchanged(found):
                return found
            self.give_back(found)
        source = self._root.files().open(path)  # without the lock: a large one must not keep other tabs waiting
        avals = {name: info.aval for name, info in source.header.tensors.items()}
        made = OpenCheckpoint(path, Checkpoint(source, avals))
        with self._lock:
            self._known[path], self._users[made] = made, 1
        return made

    def give_back(self, one: OpenCheckpoint) -> None:
        """Close a checkpoint, if no other tab has it open."""
        with self._lock:
            left = self._users.get(one, 1) - 1
            if left:
                self._users[one] = left
                return
            self._users.pop(one, None)
            if self._known.get(one.path) is one:
                del self._known[one.path]
        one.checkpoint.source.close()


def _is_unchanged(one: OpenCheckpoint) -> bool:
    try:
        one.checkpoint.source.verify_unchanged()
    except StoreError:
        return False
    return True


class Opened(Mapping[str, OpenCheckpoint]):
    """The checkpoints that a tab has open, by path, and what it measured of them."""

    def __init__(self, shelf: Shelf, memory: int | None):
        self._shelf, self._memory = shelf, memory
        self._known: dict[str, OpenCheckpoint] = {}
        self._measured = ResultCache()
        self._problems: dict[OpenCheckpoint, dict[str, str]] = {}

    def __getitem__(self, path: str) -> OpenCheckpoint:
        return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def open(self, path: str) -> OpenCheckpoint:
        """Open a checkpoint, anew if it is open. Raises StoreError."""
        return self._put(path, self._shelf.take(path))

    def put_tried(self, label: str, path: str) -> OpenCheckpoint:
        """Open what a plan made, under a label. Raises StoreError."""
        return self._put(label, OpenCheckpoint(label, Checkpoint.open(path), tried=True))

    def _put(self, path: str, one: OpenCheckpoint) -> OpenCheckpoint:
        self.close(path)
        self._known[path] = one
        return one

    def close(self, path: str) -> None:
        """Close a checkpoint, and forget what was measured of it."""
        if (found := self._known.pop(path, None)) is not None:
            self._measured.forget(found)
            self._problems.pop(found, None)
            self._shelf.give_back(found)

    def _side(self, path: str) -> OpenCheckpoint:
        if path not in self._known:
            raise StoreError(path, "is not open any more", remedy="Open it again.")
        return self._known[path]

    # --- one tensor

    def measure(self, path: str, name: str, stop: StopSignal = NEVER) -> TensorStats | None:
        """The statistics of a tensor; None for one without. Raises StoreError, Stopped."""
        one = self._side(path)
        if isinstance(known := self._measured.get((one,), "stats"), Mapping) and name in known:
            return known[name]
        found = self._measured.once((one,), ("stats", name), lambda: stats(
            self._only(one, name), memory=self._memory, stop=stop).get(name))  # fmt: skip
        if found is not None:
            self._problems[one] = {**find_problems({name: found}), **self.problems(path)}
        return found

    def problems(self, path: str) -> Mapping[str, str]:
        """What is wrong, by name, with the tensors that were measured and look broken. Raises StoreError."""
        return self._problems.get(self._side(path), {})

    def histogram(self, path: str, name: str, stop: StopSignal = NEVER) -> Histogram:
        """The histogram of a tensor of real numbers. Raises ValueError, StoreError, Stopped."""
        one = self._side(path)
        return self._measured.once((one,), ("histogram", name),
                          lambda: histogram(one.checkpoint, name, memory=self._memory, stop=stop))  # fmt: skip

    def histograms(self, left: str, right: str, name: str, stop: StopSignal = NEVER) -> tuple[Histogram, Histogram]:
        """The histograms of a tensor of real numbers on both sides, in the same bins. Raises StoreError, Stopped."""
        a, b = self._side(left), self._side(right)

        def compute() -> tuple[Histogram, Histogram]:
            before, after = histograms_on_one_span(a.checkpoint, b.checkpoint, [name], memory=self._memory, stop=stop)
            return before[name], after[name]

        return self._measured.once((a, b), ("histograms", name), compute)

    def spectrum(self, path: str, name: str, most: int | None = None, stop: StopSignal = NEVER) -> Spectrum:
        """The spectrum of a matrix, or so many of its largest values. Raises ValueError, StoreError, Stopped."""
        one = self._side(path)
        return self._measured.once((one,), ("spectrum", name, most), lambda: spectrum(
            self._only(one, name), most=most, memory=self._memory, stop=stop)[name])  # fmt: skip

    def heat_map(self, path: str, name: str, window: Window | None, stop: StopSignal = NEVER) -> HeatMap:
        """A tensor of real numbers on a grid. Raises ValueError, StoreError, Stopped."""
        one = self._side(path)
        return self._measured.once((one,), ("heat map", name, window), lambda: heat_map(
            one.checkpoint, name, rows=CELLS, columns=CELLS, window=window, stop=stop))  # fmt: skip

    def heat_map_of_change(
        self, left: str, right: str, name: str, window: Window | None, stop: StopSignal = NEVER
    ) -> HeatMap:
        """The right tensor less the left one on a grid. Raises ValueError, StoreError, Stopped."""
        a, b = self._side(left), self._side(right)
        return self._measured.once((a, b), ("heat map", name, window), lambda: heat_map(
            a.checkpoint, name, b.checkpoint, rows=CELLS, columns=CELLS, window=window, stop=stop))  # fmt: skip

    def _only(self, one: OpenCheckpoint, name: str) -> Checkpoint:
        if name not in one.avals:
            raise StoreError(one.path, "was opened anew, without this tensor", tensor=name)
        return Checkpoint(one.checkpoint.source, {name: one.avals[name]})

    # --- many tensors

    def find_problems(self, path: str, stop: StopSignal = NEVER) -> Mapping[str, str]:
        """Measure all tensors; what is wrong, by name, with those that look broken. Raises StoreError, Stopped."""
        one = self._side(path)
        found = self._measured.once((one,), "stats", lambda: stats(one.checkpoint, memory=self._memory, stop=stop))
        self._problems[one] = find_problems(found)
        return self._problems[one]

    def compare(
        self, left: str, right: str, pattern: str = "", *, ranks: bool = False, stop: StopSignal = NEVER
    ) -> Difference:
        """The difference of two open checkpoints, with `ranks` also the effective ranks of what differs. Raises
        ValueError for a pattern that matches nothing, StoreError, Stopped."""
        a, b = self._side(left), self._side(right)
        target = read_pattern(pattern) if pattern.strip() else None
        return self._measured.once((a, b), ("diff", pattern, ranks), lambda: diff(
            a.checkpoint, b.checkpoint, target=target, effective_rank=ranks, memory=self._memory,
            stop=stop))  # fmt: skip

    def spectra(
        self, path: str, tuned: str | None, pattern: str, most: int | None, stop: StopSignal = NEVER
    ) -> Mapping[str, Spectrum]:
        """The spectra of the matrices that match, or of their changes in a tuned checkpoint. Raises ValueError if none
        does, StoreError, Stopped."""
        one, other = self._side(path), None if tuned is None else self._side(tuned)
        target = read_pattern(pattern) if pattern.strip() else None
        sides = (one,) if other is None else (one, other)
        return self._measured.once(sides, ("spectra", pattern, most), lambda: spectrum(
            one.checkpoint, None if other is None else other.checkpoint, target=target, most=most,
            memory=self._memory, stop=stop))  # fmt: skip
