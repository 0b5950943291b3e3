"""Work of a library in a thread of its own, where no signal disturbs it, and from which it can be shut out."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import count

from brainsurgery_jax.store.leftovers import remove
from brainsurgery_jax.store.uninterrupted import defer_signals

GRACE_S = 5.0
"""How long orbax may finish what it is writing when we are stopped, in seconds."""


def work_apart(path: str, work_in: Callable[[], None]) -> None:
    """Has orbax write to a folder, in a thread of its own, where no signal disturbs it: interrupted, its threads would
    go on, and put back what is removed. Whoever stops us waits until it is done."""
    with ThreadPoolExecutor(1, "orbax") as thread:
        work = thread.submit(work_in)
        try:
            work.result()
        except (KeyboardInterrupt, SystemExit):
            with defer_signals():
                _end(path, work)
            raise


def _end(path: str, work: Future[None]) -> None:
    """Waits until nobody writes to a folder any more. Some time after orbax has made its folders it is shut out;
    earlier its threads would wait for minutes for a folder that could not be made."""
    begun = False
    while not wait([work], GRACE_S).done:
        if begun:
            _shut_out(path, work)
            return
        begun = bool(os.listdir(path))


def _shut_out(path: str, work: Future[None]) -> None:
    """Makes all that is still to be written to a folder fail, and removes it."""
    with _complaints_dropped():
        asides = list(_block_folder(path))
        wait([work])
        for place in (path, *asides):
            remove(place)


def _block_folder(path: str) -> Iterator[str]:
    """Puts a file where a folder is; yields where that folder is now, and any that was made in its place meanwhile."""
    for number in count(1):
        aside = f"{path}-{number}"  # a name that the next run would clear, too
        os.rename(path, aside)
        yield aside
        with suppress(FileExistsError), open(path, "x"):
            return


@contextmanager
def _complaints_dropped() -> Iterator[None]:
    """A context that silences the log of libraries whose failures are expected."""
    level, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()  # while what is never awaited is no news
    finally:
        logging.disable(level)
        sys.unraisablehook = hook
