"""Models fitted anew on what is visible by now, keeping what the valid days chose: sizes, stops, weights of a stack, calibration.

Nothing is held out, so the newest rows count too, and no row judges: calibration goes on by following the stream (`online.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from stream_dmgin.training.loop import Options, Requests
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.stack import Stack
from stream_dmgin.training.trees import Trees, refit_trees
from stream_dmgin.training.zoo import Contender


def refit(
    name: str, rows: Mapping[str, TrainingRows], requests: Requests, options: Options, before: Mapping[str, Contender],
    now: MutableMapping[str, Contender],
) -> Contender:  # fmt: skip
    """The model `name` of `before`, fitted anew on these requests of its `rows`. `now` holds what was refitted on them already, and gets
    it too."""
    if name not in now:
        now[name] = _refit(name, rows, requests, options, before, now)
    return now[name]


def _refit(
    name: str, rows: Mapping[str, TrainingRows], requests: Requests, options: Options, before: Mapping[str, Contender],
    now: MutableMapping[str, Contender],
) -> Contender:  # fmt: skip
    model = before[name]
    if isinstance(model, Stack):
        names = {id(m): n for n, m in before.items()}
        every = {n: rows.get(n, rows[name]) for n in before}
        members = [refit(names[id(m)], every, requests, options, before, now) for m in model.members]
        return replace(model, members=tuple(members))
    return refit_trees(rows[name], requests, model) if isinstance(model, Trees) else model
