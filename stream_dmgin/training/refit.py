"""Models fitted anew on what is visible by now, keeping what the valid days chose: sizes, stops, weights of a stack, calibration.

Nothing is held out, so the newest rows count too, and no row judges: calibration goes on by following the stream (`online.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

from stream_dmgin.training.further import further
from stream_dmgin.training.loop import Fitted, Options, Requests
from stream_dmgin.training.options import RefitOptions
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.stack import Stack
from stream_dmgin.training.trees import Trees, refit_trees
from stream_dmgin.training.zoo import Bare, Contender, without_interests


@dataclass(frozen=True)
class Refit:
    """One moment of refitting: what can be learned from by now, what the models of `before` have learned from, and how."""

    rows: Mapping[str, TrainingRows]
    requests: Requests
    known: Requests
    before: Mapping[str, Contender]
    options: Options
    how: RefitOptions


def refit(name: str, at: Refit, now: MutableMapping[str, Contender]) -> Contender:
    """The model `name` of `at.before`, fitted on the requests of this moment. `now` holds what was refitted on them already, and gets it
    too."""
    if name not in now:
        now[name] = _refit(name, at, now)
    return now[name]


def _refit(name: str, at: Refit, now: MutableMapping[str, Contender]) -> Contender:
    model, rows = at.before[name], at.rows[name]
    if isinstance(model, Stack):
        names = {id(m): n for n, m in at.before.items()}
        every = replace(at, rows={n: at.rows.get(n, rows) for n in at.before})
        members = [refit(names[id(m)], every, now) for m in model.members]
        return replace(model, members=tuple(members))
    if isinstance(model, Trees):
        return refit_trees(rows, at.requests, model)
    if isinstance(model, Bare):
        return Bare(further(model.fitted, without_interests(rows), at.requests, at.known, at.options, at.how))
    if isinstance(model, Fitted):
        return further(model, rows, at.requests, at.known, at.options, at.how)
    return model
