"""Before a release: the model that runs and the one that is to take its place, over one replay. What is surely worse is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stream_dmgin.ab.compare import DECIDING, Comparison, compare, gain
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.score import score
from stream_dmgin.replay.source import Source
from stream_dmgin.scoring.engine import Engine


def held_against(
    source: Source, groups: GroupMap, running: Engine, wanted: Engine, first: int, last: int,
    progress: Callable[[int], None] | None = None, draws: int = 500,
) -> Comparison:  # fmt: skip
    """Both models on the requests [first, last) of a source. InputError where their labels can't tell anything."""
    engines: dict[str, Engine | None] = {running.model.id: running, wanted.model.id: wanted}
    scored = score(source, groups, engines, first, last, progress)
    r = source.requests
    label = r.label[int(r.first[first]) : int(r.first[last])]
    known = label >= 0
    users = np.unique(np.array(r.user, object), return_inverse=True)[1][r.request_of_rows()]
    of_rows = users[int(r.first[first]) : int(r.first[last])][known]
    return compare(label[known], of_rows, {s.model: s.ctr[known] for s in scored}, running.model.id, draws)


def refuse_worse(found: Comparison) -> None:
    """StreamDmginError where AUC or logloss of the challenger is surely worse: the whole 95 % interval on the wrong side of zero."""
    for challenger, differences in found.differences.items():
        worse = [k for k in DECIDING if gain(k, differences[k]) < 0]
        if worse:
            raise StreamDmginError(
                f"{challenger} is not released: worse {' and '.join(worse)} than the running {found.champion}. {found.verdict} "
                "Train it again, or publish it without --compare if you know better"
            )
