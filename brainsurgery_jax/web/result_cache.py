"""What was measured, kept while there is room: the results that were used last, up to a number of bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import TypeVar, cast

from brainsurgery_jax._lazy import np

MOST_BYTES = 64 << 20
"""What the results of a tab may take."""

T = TypeVar("T")


class ResultCache:
    """Results by what they were measured of, and by what was asked. Safe to use from several threads."""

    def __init__(self, most: int = MOST_BYTES):
        self._most, self._lock = most, Lock()
        self._known: OrderedDict[tuple[tuple[Hashable, ...], Hashable], tuple[object, int]] = OrderedDict()
        self.nbytes = 0

    def once(self, sides: tuple[Hashable, ...], question: Hashable, compute: Callable[[], T]) -> T:
        """The result, computed if it is not kept. Raises what `compute` raises."""
        key = sides, question
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return cast("T", self._known[key][0])
        found = compute()  # without the lock: others need not wait
        self._put(key, found)
        return found

    def get(self, sides: tuple[Hashable, ...], question: Hashable) -> object | None:
        """The result, if it is kept."""
        with self._lock:
            return self._known.get((sides, question), (None, 0))[0]

    def forget(self, side: Hashable) -> None:
        """Drop all that was measured of something."""
        with self._lock:
            for key in [key for key in self._known if side in key[0]]:
                self.nbytes -= self._known.pop(key)[1]

    def _put(self, key: tuple[tuple[Hashable, ...], Hashable], found: object) -> None:
        size = weigh(found)
        with self._lock:
            if key not in self._known and size <= self._most:
                self._known[key] = found, size
                self.nbytes += size
            while self.nbytes > self._most:
                self.nbytes -= self._known.popitem(last=False)[1][1]


def weigh(value: object) -> int:
    """About how many bytes a value takes, with all that it holds."""
    own = sys.getsizeof(value)
    if isinstance(value, np.ndarray):
        return own + (value.nbytes if value.base is not None else 0)
    if isinstance(value, Mapping):
        return own + sum(weigh(key) + weigh(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return own + sum(map(weigh, value))
    if is_dataclass(value):
        return own + sum(weigh(getattr(value, field.name)) for field in fields(value))
    return own
