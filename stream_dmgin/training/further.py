"""A network that goes on learning: from its weights, on the rows that became visible since, and some of those it knows.

Nothing is held out, so that the newest rows count too, and nothing is chosen: passes and rate are options (`RefitOptions`, chosen on
valid days), the calibration and the weight of the second output stay. The network starts from its calibrated logits, which its loss has
no reason to stretch, and gives logits of the old scale again, so that the calibration from before fits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stream_dmgin.models.trunk import Trunk
from stream_dmgin.training.loop import Fitted, Options, Requests, Run
from stream_dmgin.training.objective import blended, with_lists
from stream_dmgin.training.options import RefitOptions
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.start import rescaled, scales, usual_length


def further(
    before: Fitted, rows: TrainingRows, requests: Requests, known: Requests, options: Options, refit: RefitOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:  # fmt: skip
    """The network of `before`, which has learned from the requests `known`, after learning from `requests`, of which those are new
    that aren't among the `known`. Without new ones it is `before` itself. One thread, the same again by seed."""
    new = np.setdiff1d(requests, known)
    if not len(new):
        return before
    platt = scales(before.calibration.platt)
    chosen = with_older(new, np.intersect1d(requests, known), refit.old, options.seed)
    schedule = replace(options, epochs=refit.epochs, lr=refit.lr)
    made = _learned(before, rows, chosen, schedule, rescaled(before.network, platt), progress)
    back = {h: (1.0 / a, -b / a) for h, (a, b) in platt.items()}
    return replace(before, network=rescaled(made, back).eval().requires_grad_(False))


def with_older(new: Requests, known: Requests, old: float, seed: int) -> Requests:
    """The new requests with `old` times as many of the known ones, drawn by lot (all where there are no more), in order of time."""
    n = min(len(known), round(old * len(new)))
    lot = np.random.default_rng([seed, len(new), len(known)])
    return np.sort(np.concatenate([new, lot.choice(known, n, replace=False)]))


def _learned(before: Fitted, rows: TrainingRows, requests: Requests, options: Options, start: Trunk,
    progress: Callable[[int, int], None] | None,
) -> Trunk:  # fmt: skip
    """The running mean of the weights after all passes, from `start`."""
    lists = options.lists > 0 and bool((rows["r_rows"][requests] > 1).any())
    build = type(before.network)
    config = before.network.config
    run = Run(with_lists(config) if lists else config, rows, requests, options, build, start=start)
    for epoch in range(options.epochs):
        for part in rows.parts(options.batch, requests, np.random.default_rng([options.seed, epoch]), options.stretch):
            run.step(part)
            if progress is not None:
                progress(run.at.step, run.steps)
    learned = run.learned()
    if not lists:
        return learned
    share = 1.0 / (1.0 + before.list_weight)  # of two outputs that began alike, one again
    offset = -before.list_weight * share * usual_length(rows, requests)
    return rescaled(blended(learned, before.list_weight, build), {"ctr": (share, offset)})
