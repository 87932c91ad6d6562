"""One comparison: the requests to learn from, to choose on and to be judged by, and what each model of the zoo says of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.datasets.grouping import regrouped
from stream_dmgin.errors import InputError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.peers import PEERS
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import keep as kept
from stream_dmgin.training.heads import head_measures, rows_as_of
from stream_dmgin.training.items import item_start
from stream_dmgin.training.keep import Keep
from stream_dmgin.training.lives import Lives, lives_of
from stream_dmgin.training.loop import Fitted, Options, Point, predict
from stream_dmgin.training.outcome import Outcome
from stream_dmgin.training.recipes import Recipe
from stream_dmgin.training.refit import Refit, refit
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.side import side_by_side
from stream_dmgin.training.stack import stacked
from stream_dmgin.training.teacher import attach, lesson, lesson_again
from stream_dmgin.training.zoo import FLOOR, KNOWN, REGROUPED, Contender, fit, from_the_state, life_rows, rows_read_by

OF_THE_REQUEST = ("hour_sin", "hour_cos", "hour2_sin", "hour2_cos", "dow_sin", "dow_cos", "global_ctr_logit")

Say = Callable[[str], None]
Requests = NDArray[np.int64]
Span = tuple[int, int]  # ms, [from, to)
TEACHER = "teacher"


@dataclass(frozen=True)
class Plan:
    """What is trained on, chosen on and measured on; `refit_days`: 0 for the frozen track."""

    train: Span
    valid: Span
    test: Span
    refit_days: int = 0
    day_ms: int = 86_400_000

    def steps(self) -> list[Span]:
        """The test days as spans of one set of weights each: all of them, or `refit_days` each."""
        step = self.refit_days * self.day_ms or self.test[1] - self.test[0]
        return [(start, min(start + step, self.test[1])) for start in range(*self.test, step)]


@dataclass
class Contest:
    """Requests of a replay from `plan.train[0]` on, number 0 of `rows` being number `first` of the source.

    `replayed`: the rows under another group map; `known`: for each step of the refit track the requests to learn from by then.
    """

    data: Dataset
    source: DatasetSource
    groups: GroupMap
    plan: Plan
    recipe: Recipe
    rows: TrainingRows
    first: int
    known: Mapping[int, Requests]
    replayed: Callable[[GroupMap], TrainingRows]
    say: Say
    keep: Keep | None = None
    log: str = ""  # digest of the data, where something is kept

    def __post_init__(self) -> None:
        self._others: dict[str, TrainingRows] = {}

    def between(self, low: int, high: int) -> Requests:
        """Numbers of the requests of a span, counted from `first`."""
        return np.arange(*(i - self.first for i in self.source.requests.between(low, high)))

    def outcomes(
        self, models: Sequence[str], runs: Sequence[Options], jobs: int = 1, done: Callable[[int, int], None] = lambda done, of: None
    ) -> list[dict[str, Outcome]]:  # fmt: skip
        """What each of the models says in each run, fitted with the seed of its options; members of a stack are fitted once for all.
        `jobs` fits at a time, each in a process of its own; `done` is told how many are ready, of how many."""
        members = self._members() if "stack" in models else ()
        learning = [*dict.fromkeys(m for model in models for m in (members if model == "stack" else (model,)))]
        contest = self if jobs == 1 else self._apart(learning)
        pupils = [(run, m) for run, o in enumerate(runs) for m in learning if o.teacher and m != "lightgbm"]
        asked = {(run, _reading(m)): partial(contest._lesson, _reading(m), runs[run]) for run, m in pupils}
        lessons = side_by_side(asked, jobs, self.say)
        taught = {(run, m): lessons[run, _reading(m)] for run, m in pupils}
        fits = {
            (run, m): partial(contest._kept, m, options, taught.get((run, m)))
            for run, options in enumerate(runs)
            for m in learning
        }
        found = side_by_side(fits, jobs, self.say, done)
        valid = self.rows.labels()[self.rows.rows_of(self.between(*self.plan.valid))]
        return [
            {m: stacked([found[run, x] for x in members], valid) if m == "stack" else found[run, m] for m in models}
            for run in range(len(runs))
        ]

    def _apart(self, models: Sequence[str]) -> Contest:
        """The same, for other processes: with all that they would otherwise each make for themselves, and nothing of this one."""
        for m in models:
            self.rows_of(m)
        if self.keep is not None:
            _ = self._of_rows
        alike = copy.copy(self)
        alike.say, alike.replayed = _silent, _nowhere
        alike.keep = self.keep and Keep(self.keep.directory, _silent)
        return alike

    def _members(self) -> tuple[str, ...]:
        members = self.recipe.stack.members
        wrong = [m for m in members if m not in KNOWN or m in (FLOOR, "stack")]
        if wrong or not members:
            raise InputError(
                f"stack.members of the recipe can't be {list(members)}: name models that learn, of {', '.join(KNOWN)}"
            )
        return members

    def _kept(self, model: str, options: Options, taught_by: Outcome | None, say: Say) -> Outcome:
        return self._once(model, model, options, partial(self.outcome, model, options, say, taught_by), say)

    def _lesson(self, reading: str, options: Options, say: Say) -> Outcome:
        """The chances of a click by a teacher of networks that read the rows of this model: of the rows to learn from, in their order, and
        on the refit track after them of those that each step learns from."""
        return self._once(TEACHER, reading, options, partial(self._taught, reading, options, say), say)

    def _taught(self, reading: str, options: Options, say: Say) -> Outcome:
        rows, started, trees = self.rows_of(reading), time.process_time(), self.recipe.trees
        learn, *later = self._learning()
        told = partial(_told, say, options.seed, TEACHER)
        first = lesson(rows, learn, self.between(*self.plan.valid), trees, options.seed, report=told)
        said = [first.chances[rows.rows_of(learn)]]
        for new in later:
            said.append(lesson_again(rows, new, trees, first.grown, options.seed).chances[rows.rows_of(new)])
        seconds = time.process_time() - started
        return Outcome(np.concatenate(said).astype(np.float64), np.zeros(0), (1.0, 0.0), [], seconds)

    def _learning(self) -> list[Requests]:
        """What is learned from: at first, and by each step of the refit track."""
        steps = self.plan.steps() if self.plan.refit_days else []
        return [self.between(*self.plan.train), *(self.known[low] for low, _ in steps)]

    def _teaching(self, rows: TrainingRows, taught_by: Outcome | None) -> list[Callable[[TrainingRows], TrainingRows]]:
        """For each of `_learning`: gives rows the chances that `_lesson` has for them, none where nothing teaches."""
        learning = self._learning()
        if taught_by is None:
            return [lambda rows: rows for _ in learning]
        takes = [rows.rows_of(requests) for requests in learning]
        said = np.split(taught_by.logits, np.cumsum([len(take) for take in takes])[:-1])
        return [partial(_attached, take, chances) for take, chances in zip(takes, said, strict=True)]

    def _once(self, name: str, reading: str, options: Options, make: Callable[[], Outcome], say: Say) -> Outcome:
        """What `make` gives, which reads the rows of a model: found in the folder, where one is kept."""
        if self.keep is None:
            return make()
        return self.keep.outcome(name, options.seed, self._facts(name, reading, options), make, say)

    def _facts(self, name: str, reading: str, options: Options) -> dict[str, Any]:
        """All that decides what a model, or a teacher, says."""
        recipe = asdict(replace(self.recipe, options=options))
        of_networks = set(recipe) - {"stack", "online"} - (set() if options.teacher else {"trees"})
        used = {"trees"} if name in ("lightgbm", TEACHER) else of_networks
        used -= set() if self.plan.refit_days else {"refit"}
        groups = regrouped(reading, self.data, self.groups).id if reading in REGROUPED else None
        return {
            "model": name, "seed": options.seed, "plan": asdict(self.plan), "recipe": {k: recipe[k] for k in sorted(used)},
            "groups": groups, "log": self.log, "rows": self._of_rows, "code": kept.of_code(*kept.MODELS),
        }  # fmt: skip

    @cached_property
    def _of_rows(self) -> str:
        return kept.of_rows(self.rows)

    @cached_property
    def lives(self) -> Lives:
        """Each user's flat sequence."""
        r, span = self.source.requests, slice(self.first, self.first + self.rows.requests)
        return lives_of(self.data, self.recipe.spec, r.user[span], r.at[span])

    def rows_of(self, model: str) -> TrainingRows:
        """The rows of a model: the same requests and labels for all, with the flat sequence or under another map where it wants that."""
        if from_the_state(model, self.rows):
            return rows_read_by(model, self.rows)
        if model in PEERS:
            return life_rows(model, self.rows, self.lives)
        if model not in REGROUPED:
            return self.rows
        if model not in self._others:
            self._others[model] = self.replayed(regrouped(model, self.data, self.groups))
        return self._others[model]

    def outcome(self, model: str, options: Options, say: Say, taught_by: Outcome | None = None) -> Outcome:
        """Fit a model that is no stack, and score the valid and test rows; on the refit track with the weights of each step. `taught_by`:
        what `_lesson` gives for a network that is taught."""
        rows, plan = self.rows_of(model), self.plan
        started = time.process_time()
        at = int(self.source.requests.first[self.first])
        judged, by_user = self.between(*plan.valid), self.data.meta.gauc == "user"
        taught = rows_as_of(rows, self.data, at, plan.test[0], options)
        teach, *later = self._teaching(rows, taught_by)
        told = partial(_told, say, options.seed)
        begins = item_start(self.data.items, self.recipe.config, options)
        fitted = fit(model, self.recipe, teach(taught), self.between(*plan.train), judged, options, told, items=begins)
        z, held, heads = [np.asarray(fitted.logits(rows, judged), np.float64)], [], []
        made, learned = fitted, self.between(*plan.train)
        for k, (low, high) in enumerate(plan.steps()):
            score = self.between(low, high)
            if plan.refit_days:
                taught, new = later[k](rows_as_of(rows, self.data, at, low, options)), self.known[low]
                made, learned = refit(made, Refit(taught, new, learned, options, self.recipe.refit)), new
            z.append(np.asarray(made.logits(rows, score), np.float64))
            held.append(_held(made, rows, score) if by_user else np.full(len(z[-1]), np.nan))
            if isinstance(made, Fitted) and rows.heads:
                found = predict(made.network, rows, score)
                heads.append(head_measures(found, made.calibration, rows, score, by_user))
        slope, offset = fitted.calibration.platt["ctr"]
        seconds = time.process_time() - started + (taught_by.seconds if taught_by is not None else 0.0)
        return Outcome(np.concatenate(z), np.concatenate(held), (slope, offset), heads, seconds)


def _reading(model: str) -> str:
    """Models that read the candidates' inputs of the same rows have one name here: one teacher suffices for them."""
    return model if model in REGROUPED else ""


def _attached(take: NDArray[np.int64], chances: NDArray[np.float64], rows: TrainingRows) -> TrainingRows:
    said = np.full(len(rows), np.nan, np.float32)
    said[take] = chances
    return attach(rows, said)


def _silent(text: str) -> None:
    """What was kept is said by the process that asked."""


def _nowhere(groups: GroupMap) -> TrainingRows:
    raise AssertionError(f"rows under the map {groups.id} were to be replayed before")


def _told(say: Say, seed: int, model: str, p: Point) -> None:
    say(
        f"{model}, seed {seed}: epoch {p.epoch:.2f}, valid logloss {p.valid_logloss:.4f}, auc {p.valid_auc:.4f}, "
        f"{p.seconds:.0f} s"
    )


def _held(model: Contender, rows: TrainingRows, requests: Requests) -> NDArray[np.float64]:
    """Raw logits with the user-only inputs as at the user's first of these requests."""
    held = rows["u_dense"][requests].copy()
    _, first, back = np.unique(rows["r_key"][requests], return_index=True, return_inverse=True)
    live = [i for i, n in enumerate(rows.spec.user_features) if n in OF_THE_REQUEST]
    changed = held[first][back]
    changed[:, live] = held[:, live]
    rows["u_dense"][requests] = changed
    try:
        return np.asarray(model.logits(rows, requests), np.float64)
    finally:
        rows["u_dense"][requests] = held
