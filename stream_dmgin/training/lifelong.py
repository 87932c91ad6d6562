"""The lifelong effect: how near models come to the true click probabilities of the simulated city, by length of life.

Users of a few fixed lengths of life are simulated together; each model is trained on all of them, chosen and calibrated on later days, and
measured on the last days of each length by itself. The measure is the expected logloss less the oracle's: the mean over test rows of
p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)), p true, q the model's. That is the gap of the logloss without the noise of the clicks drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.datasets import form
from stream_dmgin.errors import UsageError
from stream_dmgin.features.spec import PAIR_FEATURES
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.users import BLOCK
from stream_dmgin.simulator.world import DAY_MS, Plan
from stream_dmgin.training.evaluate import Plan as Days
from stream_dmgin.training.evaluate import Say, evaluate_all
from stream_dmgin.training.keep import CITY, Keep, of_code
from stream_dmgin.training.loop import Options
from stream_dmgin.training.measure import Scored
from stream_dmgin.training.metrics import Interval

RECIPE = "lifelong"
Floats = NDArray[np.float64]
# What the counters say of a user and a candidate: with it every model knows something of the whole life, sequence or not
OF_THE_PAIR = tuple(n for n in PAIR_FEATURES if n.startswith(("ug_", "ui_", "uc_", "ua_")))


@dataclass(frozen=True)
class Trial:
    """What is simulated and measured: (events of a life, users) of each stratum; days to train, choose and measure on at the end of `days`;
    at most `requests` requests of a user, drawn by lot; `pairs`: whether the counters of user x candidate are among the inputs.
    """

    strata: tuple[tuple[int, int], ...] = ((100, 2000), (1000, 400), (10_000, 60), (100_000, 10))
    items: int = 1000
    days: int = 180
    train_days: int = 30
    valid_days: int = 4
    test_days: int = 6
    requests: int = 400
    seed: int = 7
    pairs: bool = True


class Gap(NamedTuple):
    """A model in one stratum: its gap to the oracle in nats (mean over seeds), and how far that is above the first model's."""

    model: str
    life: int
    users: int
    rows: int
    gap: float
    than_first: Interval


def strata(text: str) -> tuple[tuple[int, int], ...]:
    """`100x2000,1000x400` as (events of a life, users). Raises UsageError."""
    found = []
    for part in text.split(","):
        life, times, users = part.strip().partition("x")
        if not (times and life.isdigit() and users.isdigit()) or not 10 <= int(life) <= 1_000_000:
            raise UsageError(
                f"--lives {text!r}: write LIFExUSERS,... such as 100x2000,10000x60, a life of 10 to 1,000,000 events"
            )
        if not 1 <= int(users) <= BLOCK:
            raise UsageError(f"--lives {text!r}: 1 to {BLOCK} users of each length")
        found.append((int(life), int(users)))
    return tuple(found)


def measure(
    trial: Trial, models: Sequence[str], out: Path, seeds: int = 1, options: Options | None = None, draws: int = 500,
    say: Say = lambda text: None, progress: Callable[[int, int], None] | None = None, keep: Path | None = None,
    first_seed: int = 1, jobs: int = 1, fitted: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Gap], dict[str, float]]:  # fmt: skip
    """Simulate, train, and compare; strata in order, models in the order given. Also the seconds of CPU that a seed of each model took.

    The city is written to `out`/city, or to the folder `keep`, which keeps the replayed rows and what each model said, too, so that only
    what is missing is made (`keep.py`).
    """
    plan = Plan(items=trial.items, seed=trial.seed, days=trial.days, strata=trial.strata)
    labelled = trial.train_days + trial.valid_days + trial.test_days
    if not 0 < labelled <= trial.days:
        raise UsageError(f"{labelled} days of training and measuring don't fit into {trial.days} simulated days")

    def simulate(city: Path) -> None:
        counts = write_history(plan, city, labelled)
        say(f"{counts['events']} events of {counts['users']} users")

    if keep is None:
        city = out / "city"
        simulate(city)
    else:
        facts = {"plan": asdict(plan), "labelled": labelled, "code": of_code(*CITY)}
        city = Keep(keep, say).folder("city", facts, simulate)
    data, truth = _sampled(form.read(city), pq.read_table(city / "oracle.parquet"), trial)
    end = plan.start_ms + trial.days * DAY_MS
    test, valid = end - trial.test_days * DAY_MS, end - (trial.test_days + trial.valid_days) * DAY_MS
    days = Days((end - labelled * DAY_MS, valid), (valid, test), (test, end + DAY_MS))
    source, scored = evaluate_all(
        data, days, models, seeds, GroupMap.from_csv(city / "groups.csv"), options, say, progress, keep=keep, first_seed=first_seed,
        hide=() if trial.pairs else OF_THE_PAIR, jobs=jobs, fitted=fitted,
    )  # fmt: skip
    seconds = {m: float(np.mean([*s.seconds.values()])) for m, s in scored.items() if s.seconds}
    return gaps(source, scored, truth, trial, draws), seconds


def _sampled(data: form.Dataset, oracle: pa.Table, trial: Trial) -> tuple[form.Dataset, Floats]:
    """At most so many requests of each user, by lot; and the true probability of each row left."""
    request = data.rows["request_id"].combine_chunks().dictionary_encode()
    code = request.indices.to_numpy()
    first = np.unique(code, return_index=True)[1]
    user = data.rows["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()[first]
    lot = np.lexsort((np.random.default_rng(trial.seed).random(len(first)), user))
    place = np.arange(len(lot))
    new = np.r_[True, user[lot][1:] != user[lot][:-1]] if len(lot) else np.zeros(0, bool)
    kept = np.zeros(len(first), bool)
    kept[lot] = place - np.maximum.accumulate(np.where(new, place, 0)) < trial.requests
    rows = pa.array(kept[code])
    meta = replace(data.meta, dataset=RECIPE)
    return replace(data, rows=data.rows.filter(rows), meta=meta), oracle["p"].to_numpy()[kept[code]].astype(np.float64)


def gaps(
    source: DatasetSource, scored: Mapping[str, Scored], truth: Floats, trial: Trial, draws: int = 500
) -> list[Gap]:
    """The table; `truth`: of each row of the source. Intervals are paired bootstraps over the users of a stratum."""
    first = next(iter(scored.values()))
    user = np.array([int(u[1:]) for u in source.requests.user])[source.requests.request_of_rows()[first.row]]
    p = truth[first.row]
    loss = {m: np.mean([divergence(p, q) for q in s.calibrated.values()], 0) for m, s in scored.items()}
    found = []
    for (block, (life, _)), name in itertools.product(enumerate(trial.strata), scored):
        mine = np.flatnonzero(user // BLOCK == block)
        code = np.unique(user[mine], return_inverse=True)[1]
        less = mean_over(loss[name][mine] - loss[next(iter(scored))][mine], code, draws)
        gap = float(loss[name][mine].mean()) if len(mine) else float("nan")
        found.append(Gap(name, life, int(code.max(initial=-1)) + 1, len(mine), gap, less))
    return found


def divergence(p: Floats, q: Floats) -> Floats:
    """What predicting q costs over predicting the true p, expected, in nats."""
    p, q = (np.clip(x, 1e-9, 1 - 1e-9) for x in (p, q))
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def mean_over(values: Floats, code: NDArray[np.int64], draws: int = 500) -> Interval:
    """Mean of values [rows], with a 95 % interval of a bootstrap over the users `code` [rows] (0, 1, ...); nan without rows."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    total, n = np.bincount(code, values), np.bincount(code)
    r = np.random.default_rng(0)
    weights = [np.bincount(r.integers(0, len(n), len(n)), minlength=len(n)) for _ in range(draws)]
    low, high = np.quantile([w @ total / (w @ n) for w in weights], [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def by_life(found: Sequence[Gap]) -> list[dict[str, Any]]:
    """One line a model, one column a length of life."""
    out: dict[str, dict[str, Any]] = {}
    for g in found:
        sure = "*" if _sure(g.than_first) else ""
        out.setdefault(g.model, {"model": g.model})[f"{g.life} events"] = f"{g.gap:.4f}{sure}"
    return list(out.values())


def markdown(found: Sequence[Gap], seconds: Mapping[str, float], command: str) -> str:
    """Two tables: the gaps, and how far each model is above the first in each length of life, with its interval."""
    lives = list(dict.fromkeys(g.life for g in found))
    at = {(g.model, g.life): g for g in found}
    models = list(dict.fromkeys(g.model for g in found))
    head, rule = " | ".join(f"{n:,} events" for n in lives), "---|" * len(lives)
    some = ", ".join(f"{at[models[0], n].users:,} with {n:,} ({at[models[0], n].rows:,} rows)" for n in lives)
    lines = [
        "# Gap to the oracle by length of life",
        "",
        f"    {command}",
        "",
        f"Users by events of a life: {some}.",
        "",
    ]
    lines += [
        "Expected logloss less the oracle's, nats; * a 95 % interval of the difference to the first that excludes zero.",
        "",
    ]
    lines += [f"| model | {head} | s of CPU a seed |", f"|---|{rule}---|"]
    for m in models:
        each = " | ".join(f"{at[m, n].gap:.4f}{'*' if _sure(at[m, n].than_first) else ''}" for n in lives)
        lines.append(f"| {m} | {each} | {f'{seconds[m]:.0f}' if m in seconds else ''} |")
    lines += ["", f"| above {models[0]} | {head} |", f"|---|{rule}"]
    for m in models[1:]:
        less = (at[m, n].than_first for n in lives)
        lines.append(f"| {m} | {' | '.join(f'{i.diff:+.4f} [{i.low:+.4f}, {i.high:+.4f}]' for i in less)} |")
    return "\n".join(lines) + "\n"


def _sure(i: Interval) -> bool:
    return i.low > 0 or i.high < 0
