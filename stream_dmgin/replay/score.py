"""Models over one replay: every request scored by each of them from the same states, counters and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.run import Replay
from stream_dmgin.replay.source import Requests, Source
from stream_dmgin.scoring.engine import Engine
from stream_dmgin.scoring.floor import item_rates

FLOOR = "item-ctr"


@dataclass
class ModelScores:
    """Probabilities of one model for every candidate of the requests, in order; further heads beside `ctr`."""

    model: str
    ctr: NDArray[np.float64]
    heads: dict[str, NDArray[np.float64]]


def score(
    source: Source, groups: GroupMap, engines: Mapping[str, Engine | None], first: int = 0, last: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ModelScores]:  # fmt: skip
    """Score requests [first, last) of a source. `engines`: name -> engine, None for the item-CTR floor."""
    r = source.requests
    last = len(r) if last is None else last
    start, n = int(r.first[first]), int(r.first[last] - r.first[first])
    used = {name: e for name, e in engines.items() if e is not None}
    out = {
        name: ModelScores(
            name, np.full(n, np.nan), {h: np.full(n, np.nan) for h in e.model.heads} if e is not None else {}
        )
        for name, e in engines.items()
    }
    replay = Replay(source, groups, [e.spec for e in used.values()])
    times = r.ts.tolist()

    def floor(i: int) -> None:
        rates = item_rates(replay.world.counters, r.candidates(i), times[i])
        out[FLOOR].ctr[r.first[i] - start : r.first[i + 1] - start] = rates

    try:
        for block in replay.blocks(first, last, floor if FLOOR in out and engines[FLOOR] is None else None):
            real = _real(r, block.first, block.last, block.width) if used else None
            at = slice(int(r.first[block.first]) - start, int(r.first[block.last]) - start)
            for (name, engine), inputs in zip(used.items(), block.inputs, strict=True):
                for head, p in engine.head(engine.tower(inputs), inputs).items():
                    (out[name].ctr if head == "ctr" else out[name].heads[head])[at] = p[real]
            if progress is not None:
                progress(block.last)
        replay.clock.finish()
    finally:
        replay.close()
    return list(out.values())


def _real(r: Requests, first: int, last: int, width: int) -> NDArray[np.bool_]:
    counts = np.diff(r.first[first : last + 1])
    mask: NDArray[np.bool_] = np.arange(width) < counts[:, None]
    return mask


def table(r: Requests, scores: Sequence[ModelScores], first: int = 0, last: int | None = None) -> pa.Table:
    """One row a (request, candidate): ids, ts, label (null where unknown), `ctr` and further heads of the one model, or `ctr_NAME`
    of each of several."""
    last = len(r) if last is None else last
    rows = slice(int(r.first[first]), int(r.first[last]))
    request = r.request_of_rows()[rows]
    at = pa.array(request)
    columns: dict[str, Any] = {
        "request_id": pa.array(r.id, pa.string()).take(at), "user_id": pa.array(r.user, pa.string()).take(at),
        "item_id": pa.array(r.item[rows], pa.string()), "ts": r.ts[request],
        "label": pa.array(r.label[rows], mask=r.label[rows] < 0),
    }  # fmt: skip
    if r.impression is not None:
        columns["impression_id"] = pa.array(r.impression, pa.string()).take(at)
    for s in scores:
        only = len(scores) == 1
        columns["ctr" if only else f"ctr_{s.model}"] = s.ctr
        for head, p in s.heads.items():
            columns[head if only else f"{head}_{s.model}"] = p
    return pa.table(columns)
