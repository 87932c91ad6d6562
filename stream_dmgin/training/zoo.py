"""Everything that `evaluate` can fit on the same rows, by name: each learns on some requests, is chosen and calibrated on others.

| name | what |
|---|---|
| dmgin | the network |
| no-interest | the same network without groups and short sequence |
| lightgbm | gradient-boosted trees on the same inputs (`trees.py`) |
| stack | weighted sum of the recipe's members in logit space, weights fitted on the valid rows (`stack.py`) |
| item-ctr | an item's click rate for life, smoothed: the floor, which learns nothing |
| din, sim, eta, sdim, twin, twin-v2, mirrn, hstu | other networks over the flat sequence, on the same trunk (`models/peers/`): from |
| | the log, or from the state where the recipe's stack names one that it suffices for, which can be served |
| dmgin-no-MODULE | dmgin without one of its modules (`models/trunk.py`, MODULES) |
| dmgin-random-groups, dmgin-category-groups, dmgin-item-groups | dmgin over another group map: the same sizes with members drawn by lot, |
| | one group a category, each item a group of its own |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import UsageError
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.members import BARE, FROM_THE_STATE, KINDS
from stream_dmgin.models.peers import PEERS
from stream_dmgin.models.trunk import MODULES, Trunk
from stream_dmgin.training.items import ItemStart
from stream_dmgin.training.lives import FlatRows, LifeRows, Lives, strip
from stream_dmgin.training.loop import Fitted, Options, Point, Requests, train
from stream_dmgin.training.objective import TAUGHT
from stream_dmgin.training.recipes import Recipe
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.teacher import attach, lesson
from stream_dmgin.training.trees import train_trees

FLOOR = "item-ctr"
MODELS = (FLOOR, "no-interest", "dmgin", "lightgbm", "stack")
WITHOUT = {f"dmgin-no-{module}": module for module in MODULES}
REGROUPED = ("dmgin-random-groups", "dmgin-category-groups", "dmgin-item-groups")
ABLATIONS = ("dmgin", *WITHOUT, *REGROUPED)
KNOWN = (*MODELS, *PEERS, *ABLATIONS[1:])
SERVED = ("lightgbm", *KINDS, *WITHOUT)  # what a released stack may be made of
WORDS = {"all": (*MODELS, *PEERS), "peers": ("dmgin", *PEERS), "ablations": ABLATIONS}

Report = Callable[[str, Point], None]
Progress = Callable[[int, int], None]


def named(text: str) -> tuple[str, ...]:
    """Models by a comma list of KNOWN and WORDS, each once. Raises UsageError."""
    wanted: list[str] = []
    for name in text.split(","):
        wanted += WORDS.get(name.strip(), (name.strip(),))
    for name in wanted:
        if name not in KNOWN:
            raise UsageError(
                f"--model {name!r} is not known: choose of {', '.join((*KNOWN, *WORDS))}, or several with commas"
            )
    return tuple(dict.fromkeys(wanted))


class Contender(Protocol):
    """A fitted model."""

    @property
    def calibration(self) -> Calibration:
        """Platt parameters of `ctr`, fitted on the valid rows."""
        ...

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.floating]:
        """Raw logits of the rows of these requests, in the order of `rows.rows_of`."""
        ...


@dataclass(frozen=True)
class Bare:
    """A network fitted without groups and short sequence."""

    fitted: Fitted

    @property
    def calibration(self) -> Calibration:
        """Of the network."""
        return self.fitted.calibration

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.floating]:
        """As `Contender` says."""
        return self.fitted.logits(without_interests(rows), requests)


def fit(
    name: str, recipe: Recipe, rows: TrainingRows, learn: Requests, judge: Requests, options: Options, report: Report,
    checkpoint: Path | None = None, checkpoint_steps: int = 0, progress: Progress | None = None, start: Trunk | None = None,
    items: ItemStart | None = None,
) -> Contender:  # fmt: skip
    """Fit a model of KNOWN (neither the floor nor a stack) on its rows; of networks the last five are as `loop.train` has them. A network
    whose options ask for a teacher, on rows that have none, is taught by trees on these rows."""
    if name == "lightgbm":
        trees = replace(recipe.trees, seed=options.seed)
        return train_trees(rows, learn, judge, trees, report=lambda p: report(name, p))
    if options.teacher and TAUGHT not in rows.columns:
        told = lesson(rows, learn, judge, recipe.trees, options.seed, report=lambda p: report("teacher", p))
        rows = attach(rows, told.chances)
    config = replace(recipe.config, off=(WITHOUT[name],)) if name in WITHOUT else recipe.config
    build, mine = PEERS.get(name, DMGIN), without_interests(rows) if name == BARE else rows
    fitted = train(
        config, mine, learn, mine, judge, options, checkpoint, lambda p: report(name, p), build, checkpoint_steps=checkpoint_steps,
        progress=progress, start=start, items=items,
    )  # fmt: skip
    return Bare(fitted) if name == BARE else fitted


def kind_of(name: str) -> str:
    """The kind of network (`models/members.py`) that a model of SERVED is."""
    return "dmgin" if name in WITHOUT else name


def rows_read_by(name: str, rows: TrainingRows) -> TrainingRows:
    """The rows as the model reads them that serves under this name: a peer's flat sequence is what replay read from the state."""
    if name == BARE:
        return without_interests(rows)
    return FlatRows(rows, PEERS[name].reach) if name in PEERS else rows


def from_the_state(name: str, rows: TrainingRows) -> bool:
    """A peer that the flat sequence of these rows suffices for."""
    return name in FROM_THE_STATE and PEERS[name].reach <= rows.spec.flat


def life_rows(peer: str, rows: TrainingRows, lives: Lives) -> TrainingRows:
    """The rows with each user's flat sequence, as far back as this peer looks."""
    return LifeRows(rows, lives, PEERS[peer].reach, PEERS[peer].clustered)


def without_interests(rows: TrainingRows) -> TrainingRows:
    """The same rows with no groups and no short sequence: what the interest modules add is the difference."""
    out = TrainingRows(rows.spec, rows.heads)
    strip(rows, out, short=False)
    return out
