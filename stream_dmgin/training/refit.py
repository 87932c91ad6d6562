"""Models fitted anew on what is visible by now, keeping what the valid days chose: sizes, stops, weights of a stack, calibration.

Nothing is held out, so the newest rows count too, and no row judges: calibration goes on by following the stream (`online.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_dmgin.training.further import further
from stream_dmgin.training.loop import Fitted, Options, Requests
from stream_dmgin.training.options import RefitOptions
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.trees import Trees, refit_trees
from stream_dmgin.training.zoo import Bare, Contender, without_interests


@dataclass(frozen=True)
class Refit:
    """One moment of refitting: what can be learned from by now, what the model has learned from before, and how."""

    rows: TrainingRows
    requests: Requests
    known: Requests
    options: Options
    how: RefitOptions


def refit(model: Contender, at: Refit) -> Contender:
    """A model that is no stack, fitted on the requests of this moment."""
    if isinstance(model, Trees):
        return refit_trees(at.rows, at.requests, model)
    if isinstance(model, Bare):
        bare = without_interests(at.rows)
        return Bare(further(model.fitted, bare, at.requests, at.known, at.options, at.how))
    if isinstance(model, Fitted):
        return further(model, at.rows, at.requests, at.known, at.options, at.how)
    return model
