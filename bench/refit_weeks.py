"""Does a model that learns from the stream stay nearer to the truth? Ten weeks of a simulated city whose people and habits drift.

python bench/refit_weeks.py [--users 150] [--drift 1] [--seeds 1] [--out DIR]

A city of its own, replayed once. A network and trees learn from ten weeks and are chosen and calibrated on the eleventh; then they meet
ten more, one after the other:

- as they are (frozen), and with calibration that follows the stream;
- fitted every week, networks from where they are, trees anew on all that is visible;
- the same as `stream-dmgin refit` does it: the newest two days are held out, the first calibrates, and a network that is surely worse
  on the second is not taken;
- trained from nothing every week, the newest week choosing.

Prints, for each week, the expected logloss less the oracle's. DIR gets refit_weeks.json and refit_weeks.svg, and the probabilities of each
seed, which are used again: more --seeds go on from there, and --first-seed splits them over
processes. Intervals are bootstraps over users.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.ab.compare import DECIDING, compare, gain
from stream_dmgin.ab.plots import lines
from stream_dmgin.datasets import form
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.world import DAY_MS, Plan
from stream_dmgin.training.continual import recalibrated
from stream_dmgin.training.evaluate import label_times
from stream_dmgin.training.further import further
from stream_dmgin.training.lifelong import divergence, mean_over
from stream_dmgin.training.loop import Fitted, Requests, train
from stream_dmgin.training.metrics import logloss
from stream_dmgin.training.online import Answered, OnlineOptions, follow
from stream_dmgin.training.options import Options, RefitOptions
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.served import of_network
from stream_dmgin.training.trees import TreeOptions, Trees, refit_trees, train_trees

WEEK = 7 * DAY_MS
BEFORE, TRAIN, VALID, TEST = 6, 10, 1, 10  # weeks: of history alone, to learn from, to choose on, to measure
ONLINE = OnlineOptions(every_ms=6 * 3_600_000, window_ms=WEEK, least=1000)
REFIT = RefitOptions(epochs=2, lr=3e-4, old=3.0)  # of seven, the best on weeks 8 to 11, fitted on weeks 1 to 7
PLOTTED = (
    "frozen, online calibration",
    "weekly refit",
    "weekly refit with guard",
    "weekly from scratch",
    "trees, weekly refit",
)
Floats = NDArray[np.float64]


@dataclass
class Weeks:
    """The replayed city: rows, their true probabilities, when each label was known, and where each week begins."""

    rows: TrainingRows
    truth: Floats
    visible: NDArray[np.int64]  # of each request
    start: int  # ms, of the first week to learn from
    config: DMGINConfig
    options: Options
    trees: TreeOptions

    def at(self, week: int) -> int:
        """When a week begins; week 0 is the first to learn from."""
        return self.start + week * WEEK

    def known(self, time_ms: int) -> Requests:
        """Requests whose label was known before."""
        return np.flatnonzero((self.visible < time_ms) & (self.rows["r_ts"] < time_ms))

    def between(self, low: int, high: int) -> Requests:
        """Requests of these times."""
        return self.rows.between(low, high)


def city(args: argparse.Namespace, out: Path) -> Weeks:
    """Simulate, replay."""
    weeks = BEFORE + TRAIN + VALID + TEST
    plan = Plan(args.users, args.items, args.seed, life=(300, 3000), days=7 * weeks, drift=args.drift)
    write_history(plan, out, 7 * (weeks - BEFORE))
    data = form.read(out)
    spec = replace(
        DMGINConfig().spec, groups=24, events=8, short=16, item_buckets=2048, item_numbers=tuple(data.meta.item_numbers)
    )
    source = DatasetSource(data)
    rows = training_rows(source, GroupMap.from_csv(out / "groups.csv"), spec)
    truth = pq.read_table(out / "oracle.parquet")["p"].to_numpy().astype(np.float64)
    visible = label_times(data, source.requests.id)
    config = DMGINConfig(spec, heads=tuple(data.meta.heads), width=24, hidden=(64, 32))
    options = Options(epochs=args.epochs, batch=512)
    return Weeks(
        rows,
        truth,
        visible,
        plan.start_ms + BEFORE * WEEK,
        config,
        options,
        TreeOptions(rows_a_leaf=100, lr=0.1, patience=40),
    )


def answered(weeks: Weeks, z: Floats) -> Answered:
    """The rows with their logits, for calibration to follow."""
    n = weeks.rows["r_rows"]
    return Answered(np.repeat(weeks.rows["r_ts"], n), z, weeks.rows.labels(), np.repeat(weeks.visible, n), {})


def through(weeks: Weeks, first: Any, step: Callable[[Any, int], Any]) -> tuple[Floats, Floats, float]:
    """(probabilities by the calibration of the model of each week; followed by the stream; seconds); the model of a week is the
    `step` of that before."""
    rows, model, spent = weeks.rows, first, 0.0
    z, p = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    judged = weeks.between(weeks.at(TRAIN), weeks.at(TRAIN + VALID))
    z[rows.rows_of(judged)] = model.logits(rows, judged)
    for week in range(TRAIN + VALID, TRAIN + VALID + TEST):
        began = time.process_time()
        model = step(model, week)
        spent += time.process_time() - began
        here = weeks.between(weeks.at(week), weeks.at(week + 1))
        take = rows.rows_of(here)
        z[take] = model.logits(rows, here)
        p[take] = model.calibration.apply("ctr", z[take])
    same: Calibration = first.calibration
    online = follow(answered(weeks, z), same, weeks.at(TRAIN + VALID), weeks.at(TRAIN + VALID + TEST), ONLINE)
    return p, online, spent


def networks(weeks: Weeks, seed: int, say: Callable[[str], None]) -> dict[str, Floats]:
    """Probabilities of each way, by name."""
    rows, options = weeks.rows, replace(weeks.options, seed=seed)
    learn, judge = (weeks.between(weeks.at(a), weeks.at(b)) for a, b in ((0, TRAIN), (TRAIN, TRAIN + VALID)))
    began = time.process_time()
    frozen = train(weeks.config, rows, learn, rows, judge, options)
    say(f"dmgin, seed {seed}: {time.process_time() - began:.0f} s, valid logloss {frozen.best.valid_logloss:.4f}")

    def until(week: int) -> Requests:
        return learn if week == TRAIN + VALID - 1 else weeks.known(weeks.at(week))

    def warm(model: Fitted, week: int) -> Fitted:
        return further(model, rows, weeks.known(weeks.at(week)), until(week - 1), options, REFIT)

    seen = {"requests": learn, "refused": 0}

    def guarded(model: Fitted, week: int) -> Fitted:
        low = weeks.at(week)
        known, mended = weeks.known(low - 2 * DAY_MS), weeks.between(low - 2 * DAY_MS, low - DAY_MS)
        wanted = further(model, rows, known, seen["requests"], options, REFIT)
        wanted = replace(wanted, calibration=recalibrated(of_network(wanted), rows, mended))
        newest = np.intersect1d(weeks.between(low - DAY_MS, low), weeks.known(low))
        y = rows.labels()[rows.rows_of(newest)]
        scores = {
            n: m.calibration.apply("ctr", m.logits(rows, newest)) for n, m in (("running", model), ("wanted", wanted))
        }
        found = compare(y, np.repeat(rows["r_key"][newest], rows["r_rows"][newest]), scores, "running")
        if any(gain(k, found.differences["wanted"][k]) < 0 for k in DECIDING):
            seen["refused"] += 1
            return model
        seen["requests"] = known
        return wanted

    def anew(model: Fitted, week: int) -> Fitted:
        last = weeks.at(week - 1)
        newest = np.setdiff1d(weeks.known(weeks.at(week)), weeks.known(last))
        return train(weeks.config, rows, weeks.known(last), rows, newest, options)

    out: dict[str, Floats] = {}
    out["frozen"], out["frozen, online calibration"], _ = through(weeks, frozen, lambda m, w: m)
    for name, step in (("weekly refit", warm), ("weekly refit with guard", guarded), ("weekly from scratch", anew)):
        out[name], followed, seconds = through(weeks, frozen, step)
        if name != "weekly refit with guard":
            out[f"{name}, online calibration"] = followed
        refused = f", {seen['refused']} of {TEST} refused" if "guard" in name else ""
        say(f"dmgin, {name}, seed {seed}: {seconds / TEST:.1f} s a week{refused}")
    return out


def trees(weeks: Weeks, seed: int, say: Callable[[str], None]) -> dict[str, Floats]:
    """The same of trees."""
    rows = weeks.rows
    learn, judge = (weeks.between(weeks.at(a), weeks.at(b)) for a, b in ((0, TRAIN), (TRAIN, TRAIN + VALID)))
    frozen = train_trees(rows, learn, judge, replace(weeks.trees, seed=seed))

    def anew(model: Trees, week: int) -> Trees:
        return refit_trees(rows, weeks.known(weeks.at(week)), model)

    out: dict[str, Floats] = {}
    out["trees, frozen"], out["trees, frozen, online calibration"], _ = through(weeks, frozen, lambda m, w: m)
    out["trees, weekly refit"], out["trees, weekly refit, online calibration"], seconds = through(weeks, frozen, anew)
    say(f"trees, weekly refit, seed {seed}: {seconds / TEST:.1f} s a week")
    return out


def number(keys: NDArray[Any]) -> NDArray[np.int64]:
    """Keys as 0, 1, ..."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def report(weeks: Weeks, found: dict[str, list[Floats]], out: Path) -> list[dict[str, Any]]:
    """A line a way: gap of each week and of all, and the difference to the first way with its interval."""
    rows = weeks.rows
    every = weeks.between(weeks.at(TRAIN + VALID), weeks.at(TRAIN + VALID + TEST))
    take = rows.rows_of(every)
    week = (np.repeat(rows["r_ts"][every], rows["r_rows"][every]) - weeks.at(TRAIN + VALID)) // WEEK
    users = number(rows.keys()[take])
    y = rows.labels()[take]
    gap = {k: np.mean([divergence(weeks.truth[take], p[take]) for p in ps], 0) for k, ps in found.items()}
    table = []
    for name, g in gap.items():
        against = gap["trees, frozen" if name.startswith("trees") else "frozen"]
        table.append({
            "way": name, "gap": mean_over(g, users)._asdict(), "than_frozen": mean_over(g - against, users)._asdict(),
            "weeks": [float(g[week == w].mean()) for w in range(TEST)],
            "weeks_than_frozen": [mean_over((g - against)[week == w], number(users[week == w]))._asdict() for w in range(TEST)],
            "logloss": float(np.mean([logloss(y, p[take]) for p in found[name]])),
        })  # fmt: skip
    shown = {
        t["way"]: [(w + 1.0, -d["diff"]) for w, d in enumerate(t["weeks_than_frozen"])]
        for t in table
        if t["way"] in PLOTTED
    }
    title = "nearer to the oracle's logloss than frozen, nats"
    (out / "refit_weeks.svg").write_text(lines(shown, "week after training", title, 860, log=False))
    (out / "refit_weeks.json").write_text(json.dumps(table, indent=1) + "\n")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("users", 150), ("items", 400), ("seed", 7), ("first-seed", 1), ("seeds", 1), ("epochs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drift", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        weeks = city(args, Path(folder))

    def say(text: str) -> None:
        print(text, flush=True)

    say(f"{len(weeks.rows)} rows, {time.process_time() - began:.0f} s")
    found: dict[str, list[Floats]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        file = args.out / f"refit_weeks-{seed}.npz"
        if not file.is_file():
            np.savez(file, **networks(weeks, seed, say), **trees(weeks, seed, say))
        for name, p in np.load(file).items():
            found.setdefault(name, []).append(p)
    for t in report(weeks, found, args.out):
        g, d = t["gap"], t["than_frozen"]
        by_week = " ".join(f"{x:.4f}" for x in t["weeks"])
        than = f"{d['diff']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        say(f"{t['way']:42s} {g['diff']:.4f}, than frozen {than} | {by_week} | logloss {t['logloss']:.4f}")
    say(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
