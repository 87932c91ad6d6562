"""Fits side by side: models that need nothing of one another, each in a process of its own, one thread each.

What comes out is what one process would have made, to the last bit: every fit is deterministic by its seed on one thread. Large arrays
are mapped by the processes, not copied (joblib). What a fit tells on the way is heard when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config

from stream_dmgin.errors import StreamDmginError

Name = TypeVar("Name")
Made = TypeVar("Made")
Told = TypeVar("Told")


def side_by_side(
    fits: Mapping[Name, Callable[[Callable[[Told], None]], Made]], jobs: int, tell: Callable[[Told], None],
    done: Callable[[int, int], None] = lambda done, of: None,
) -> dict[Name, Made]:  # fmt: skip
    """What each of `fits` returns, by its name and in their order; `jobs` of them run at a time, 1: one after another in this process.
    A fit is given whom to tell of its progress, and with jobs it has to be of what pickle takes. `done` is told how many are ready, of
    how many. Raises what a fit raises, and StreamDmginError where a process was killed."""
    made: dict[Name, Made] = {}
    for name, result in _one_by_one(fits, tell) if min(jobs, len(fits)) <= 1 else _together(fits, jobs, tell):
        made[name] = result
        done(len(made), len(fits))
    return {name: made[name] for name in fits}


def _one_by_one(
    fits: Mapping[Name, Callable[[Callable[[Told], None]], Made]], tell: Callable[[Told], None]
) -> Iterator[tuple[Name, Made]]:
    for name, fit in fits.items():
        yield name, fit(tell)


def _together(
    fits: Mapping[Name, Callable[[Callable[[Told], None]], Made]], jobs: int, tell: Callable[[Told], None]
) -> Iterator[tuple[Name, Made]]:
    with parallel_config(backend="loky", inner_max_num_threads=1):
        running = Parallel(
            n_jobs=min(jobs, len(fits)), return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs"
        )
        try:
            for name, made, told in running(delayed(_heard)(name, fit) for name, fit in fits.items()):
                for what in told:
                    tell(what)
                yield name, made
        except BrokenProcessPool as e:
            raise StreamDmginError(
                f"a process that fitted a model was killed, perhaps for want of memory: try fewer than --jobs {jobs}"
            ) from e


def _heard(name: Name, fit: Callable[[Callable[[Told], None]], Made]) -> tuple[Name, Made, list[Told]]:
    told: list[Told] = []
    return name, fit(told.append), told
