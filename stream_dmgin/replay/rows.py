"""Training rows out of a replay, and the plain item rates at every request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.run import Replay
from stream_dmgin.replay.source import Requests, Source
from stream_dmgin.scoring.floor import item_rates
from stream_dmgin.state.hash import item_hash
from stream_dmgin.training.rows import TrainingRows

Progress = Callable[[int], None]  # requests done so far


def training_rows(
    source: Source,
    groups: GroupMap,
    spec: InputSpec,
    first: int = 0,
    last: int | None = None,
    progress: Progress | None = None,
    directory: Path | None = None,
) -> TrainingRows:
    """The inputs and labels of requests [first, last); request k of the result is request first + k of the source.

    The key of a request is the hash of its user id. `directory`: a folder that the rows are written to as they come, so that they
    never lie in memory; what is returned is mapped from there.
    """
    rows = TrainingRows(spec, source.meta.heads, directory)
    replay = Replay(source, groups, [spec])
    r = source.requests
    try:
        for block in replay.blocks(first, last):
            span = slice(block.first, block.last)
            keys = np.fromiter((item_hash(u) for u in r.user[span]), np.uint64, block.last - block.first)
            heads = {h: padded(r, x, block.first, block.last, block.width) for h, x in r.heads.items()}
            label = padded(r, r.label, block.first, block.last, block.width)
            rows.append(block.inputs[0], label, r.ts[span], keys, heads)
            if progress is not None:
                progress(block.last)
    finally:
        replay.close()
    return rows.finish()


def padded(r: Requests, flat: NDArray[np.int8], first: int, last: int, width: int) -> NDArray[np.int8]:
    """Values per candidate as [requests, width], -1 where a request has fewer."""
    out = np.full((last - first, width), -1, np.int8)
    for k in range(last - first):
        a, b = int(r.first[first + k]), int(r.first[first + k + 1])
        out[k, : b - a] = flat[a:b]
    return out


def floor_rates(
    source: Source, groups: GroupMap, first: int = 0, last: int | None = None, progress: Progress | None = None
) -> NDArray[np.float64]:
    """The item-CTR floor for every candidate of requests [first, last), in order."""
    replay = Replay(source, groups, [])
    r = source.requests
    found: list[float] = []
    times = r.ts.tolist()

    def each(i: int) -> None:
        found.extend(item_rates(replay.world.counters, r.candidates(i), times[i]))

    try:
        for block in replay.blocks(first, last, each):
            if progress is not None:
                progress(block.last)
    finally:
        replay.close()
    return np.array(found)
