"""One refit of a released model: it learns from what became visible since its training, and the newest requests judge it.

Each network goes on from its weights (`further.py`), trees are grown anew with the rounds they had, on the new requests and those of some
days before; shares of a stack stay. Of the newest requests, from which the weights learn nothing, the older half fits the calibration, on
top of what it was and held to it where rows are few. What the newer half says is for the caller to ask (`ab/guard.py`): it taught nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from stream_dmgin.datasets.form import Meta
from stream_dmgin.errors import InputError
from stream_dmgin.models.calibration import Calibration, fit_platt
from stream_dmgin.models.forest import Forest, joined
from stream_dmgin.models.registry import Model
from stream_dmgin.models.trunk import Trunk
from stream_dmgin.replay.recalibrate import on_top
from stream_dmgin.replay.source import Requests as Asked
from stream_dmgin.training.card import card
from stream_dmgin.training.further import further
from stream_dmgin.training.loop import Fitted, Options, Point, Requests
from stream_dmgin.training.options import RefitOptions
from stream_dmgin.training.parent import list_weight, options_of, own_platt, teacher_of, tree_options, trees_of
from stream_dmgin.training.release import described
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.served import Served
from stream_dmgin.training.teacher import attach, lesson_again
from stream_dmgin.training.trees import Trees, refit_trees
from stream_dmgin.training.zoo import rows_read_by

RIDGE = 3.0  # holds the calibration to what it was, as if by a dozen rows of rate one half
LEAST = 500  # new candidates with a known label, to learn from and again to judge


@dataclass(frozen=True)
class Split:
    """Numbers of a source's requests: older ones from `first`, new ones from `new`; of the newest, those that calibrate from `cut`, and
    those that judge from `judge` to `last`."""

    first: int
    new: int
    cut: int
    judge: int
    last: int


def split(r: Asked, since_ms: int, hold: float, settle_ms: int, older_ms: int) -> Split:
    """What came after `since_ms`, but for the last `settle_ms`, whose feedback may be on its way; the newest share `hold` of it is held
    out, and half of that judges; `older_ms` of what lies before is learned from again. InputError where what teaches or what judges is
    too little or of one kind."""
    at = r.at
    end = int(at[-1]) - settle_ms if len(at) else 0
    new, last = int(np.searchsorted(at, since_ms, side="right")), int(np.searchsorted(at, end, side="right"))
    known = np.bincount(r.request_of_rows()[r.label >= 0], minlength=len(r))
    until = np.cumsum(known[new:last])
    enough = int(until[-1]) if last > new else 0
    cut, judge = (new + int(np.searchsorted(until, (1.0 - share) * enough)) for share in (hold, hold / 2))
    found = Split(int(np.searchsorted(at, since_ms - older_ms, side="right")), new, cut, judge, last)
    for a, b, what in ((new, cut, "to learn from"), (judge, last, "to judge")):
        y = r.label[int(r.first[a]) : int(r.first[max(a, b)])] if last > new else r.label[:0]
        y = y[y >= 0]
        if len(y) < LEAST or y.min() == y.max():
            raise InputError(
                f"{len(y)} labelled candidates {what} are new since {_day(since_ms)}, of {enough} in all: {LEAST} or more are needed, with "
                "clicks and without. Wait, or give another --since or --hold"
            )
    return found


def continued(
    model: Model, rows: TrainingRows, at: Split, how: RefitOptions, seed: int = 1, progress: Callable[[int, int], None] | None = None
) -> Served:  # fmt: skip
    """The model after learning from requests [first, cut) of the source, whose rows these are. InputError where its release doesn't say
    how its trees were grown."""
    learn, older = np.arange(at.cut - at.first), np.arange(at.new - at.first)
    kept = dict(model.training.get("parts", {}))
    options = replace(options_of(model), seed=seed)
    taught = _taught(model, rows, learn, seed)
    networks = [_network(model, k, taught, learn, older, options, how, progress) for k in range(len(model.members))]
    forest = _forest(model, rows, learn, seed) if model.forest is not None else None
    made = Served(
        networks[0] if networks else model.network, model.calibration, 0, [], list_weight(model), forest, model.network_weight, kept,
        model.kind, tuple(replace(m, network=n) for m, n in zip(model.further, networks[1:], strict=True)),
    )  # fmt: skip
    return replace(made, calibration=recalibrated(made, rows, np.arange(at.cut - at.first, at.judge - at.first)))


def recalibrated(made: Served, rows: TrainingRows, requests: Requests) -> Calibration:
    """Its calibration with two further parameters of `ctr`, fitted on these requests."""
    y, z = rows.labels()[rows.rows_of(requests)], made.logits(rows, requests)["ctr"][rows.rows_of(requests)]
    slope, offset = made.calibration.platt.get("ctr", (1.0, 0.0))
    platt = fit_platt(slope * z[y >= 0].astype(np.float64) + offset, y[y >= 0], RIDGE)
    return on_top(made.calibration, Calibration({"ctr": platt}))


def write(
    out: Path, name: str, made: Served, parent: Model, rows: TrainingRows, at: Split, meta: Meta, groups: str, how: RefitOptions,
    seed: int, seconds: float, command: Sequence[str], surfaces: Mapping[int, str] = MappingProxyType({}),
) -> str:  # fmt: skip
    """Write the release, with its parent and what judged it on the card; its id. `seconds` it took; `command` made it."""
    learn, judge = np.arange(at.cut - at.first), np.arange(at.judge - at.first, at.last - at.first)
    options = replace(options_of(parent), seed=seed)
    training = described(made, rows, learn, judge, options, tree_options(parent), meta, groups, surfaces=surfaces) | {
        "train_days": _days(rows, learn), "valid_days": _days(rows, judge), "parent": parent.id, "refit": asdict(how),
        "new_rows": len(rows.rows_of(learn[at.new - at.first :])), "teacher": parent.training.get("teacher"),
    }  # fmt: skip
    about = card(name, made.network.config, training, seconds, command)
    return made.save(out, name, training, about)


def _days(rows: TrainingRows, requests: Requests) -> str:
    first, last = (_day(int(rows["r_ts"][i]))[:10] for i in (requests[0], requests[-1]))
    return f"{first} to {last}"


def _taught(model: Model, rows: TrainingRows, learn: Requests, seed: int) -> TrainingRows:
    """The rows with what a teacher says of them, where one taught the model."""
    by = teacher_of(model)
    return rows if by is None else attach(rows, lesson_again(rows, learn, *by, seed).chances)


def _network(
    model: Model, k: int, rows: TrainingRows, learn: Requests, older: Requests, options: Options, how: RefitOptions,
    progress: Callable[[int, int], None] | None,
) -> Trunk:  # fmt: skip
    """Network k after learning from the new requests."""
    nowhere, member = Point(0, 0.0, float("nan"), float("nan"), float("nan"), 0.0), model.members[k]
    before = Fitted(member.network, Calibration(own_platt(model, k)), nowhere, [], list_weight(model, k))
    return further(before, rows_read_by(member.kind, rows), learn, older, options, how, progress).network


def _forest(model: Model, rows: TrainingRows, learn: Requests, seed: int) -> Forest:
    options, grown = trees_of(model)
    assert model.forest is not None
    before = Trees(
        model.forest, replace(options, seed=seed), tuple(grown["rounds"]), float(grown["weight"]), model.calibration, {}
    )
    made = refit_trees(rows, learn, before)
    return joined([(made.forest, float(grown["share"]))], float(grown["offset"]))


def _day(ms: int) -> str:
    return str(np.datetime64(ms, "ms").astype("datetime64[m]")).replace("T", " ") + " UTC"
