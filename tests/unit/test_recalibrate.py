"""A calibration taken from the log: on top of the old one, judged by the newest scores, a release with an id of its own."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest

from stream_dmgin import topics
from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.log.base import TopicInfo, open_log
from stream_dmgin.models import registry
from stream_dmgin.models.calibration import Calibration, sigmoid
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.replay.recalibrate import HOUR_MS, Settled, recalibrate, settled, write_recalibrated
from stream_dmgin.training.metrics import logloss

T0 = 1_700_000_000_000
SPEC = InputSpec(groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8)
NET = registry.untrained("net", DMGINConfig(SPEC, (), width=16, item_width=8, hidden=(16, 8)))


def rows(n: int, wrong: float, drift: bool = False) -> Settled:
    """Scores whose logits are too high by `wrong`; with `drift` only at first."""
    r = np.random.default_rng(2)
    z = r.normal(-1, 1, n)
    off = np.where(np.arange(n) < 0.7 * n, wrong, -wrong) if drift else wrong
    codes = {"surface": r.integers(0, 3, n), "hour": r.integers(0, 8, n)}
    y = (r.random(n) < sigmoid(z - off - 0.6 * (codes["surface"] == 1))).astype(np.int8)
    return Settled(T0 + np.arange(n), z, y, r.integers(0, 200, n), codes)


def test_it_is_put_on_top_of_what_the_scores_were_made_with() -> None:
    given, before = rows(20_000, 0.8), Calibration({"ctr": (1.3, 0.4), "order": (1.0, 0.2)}, {"hour": {0: 0.1}})
    found = recalibrate(given, before, ("surface", "hour"))
    assert found.rows == 20_000 and found.judged == 4_000 and not found.worse and found.logloss.high < 0
    assert found.after["logloss"] < found.before["logloss"] and found.after["ece"] < 0.03 < found.before["ece"]
    raw = (given.logit - 0.4 - 0.1 * (given.codes["hour"] == 0)) / 1.3  # what the network said
    np.testing.assert_allclose(before.apply("ctr", raw, given.codes), sigmoid(given.logit), atol=1e-9)
    p = found.calibration.apply("ctr", raw, given.codes)
    assert logloss(given.label, p) < logloss(given.label, sigmoid(given.logit)) - 0.02
    assert found.calibration.shifts["surface"][1] < -0.2 and found.calibration.platt["order"] == (1.0, 0.2)


def test_what_the_newest_scores_say_is_worse_is_said() -> None:
    found = recalibrate(rows(20_000, 1.0, drift=True), Calibration())
    assert found.worse and found.logloss.diff > 0


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(InputError, match="on the log: calibration needs"):
        recalibrate(rows(100, 0.1), Calibration())
    none = rows(5000, 0.1)
    none.label[4000:] = 0
    with pytest.raises(InputError, match="both kinds among the newest fifth"):
        recalibrate(none, Calibration())


def test_from_the_log_to_a_release(tmp_path: Path) -> None:
    ident = registry.save_model(tmp_path / "net", "net", NET.network, Calibration({"ctr": (1.0, 0.0)}), {}, "# net\n")
    model = registry.load_model(tmp_path / "net")
    r = np.random.default_rng(0)
    with open_log(f"file:{tmp_path / 'log'}") as log:
        log.create(TopicInfo("d." + name, 1) for name in (*topics.EVENTS, topics.REQUESTS, topics.SCORES))
        w = log.writer()

        def put(topic: str, body: dict) -> None:
            w.append("d." + topic, body["user_id"].encode(), msgpack.packb(body), timestamp=body["ts"], partition=0)

        for i in range(1500):
            ts, user = T0 + i * 60_000, f"u{i % 40}"
            one = {"user_id": user, "ts": ts}
            p = float(sigmoid(np.array([r.normal(0, 1)]))[0])
            put(
                topics.REQUESTS,
                {**one, "request_id": f"r{i}", "candidates": ["a", "b"], "context": {"surface": "home"}},
            )
            score = {
                "request_id": f"r{i}", "scored_at": ts, "status": "ok" if i % 10 else "fallback", "candidates": ["a", "b"], "ctr": [p, 0.5],
                "heads": {}, "model": ident, "groups": "", "reason": None, "provenance": {"offsets": {}, "counters": {}, "state": 1},
            }  # fmt: skip
            put(topics.SCORES, {**one, **score})
            put("impressions", {**one, "request_id": f"r{i}", "item_id": "a", "event_id": f"i{i}"})
            if r.random() < 0.5 * p:
                put("clicks", {**one, "request_id": f"r{i}", "item_id": "a", "event_id": f"c{i}"})
        w.close()
        found = settled(log, "d.", model, 24.0, 600)
        every = settled(log, "d.", model, 1000.0, 0)
    assert len(every.ts) == 1350  # b was never shown, and a fallback is none of the model's scores
    end = int(every.ts[-1])
    assert found.ts.min() >= end - 24 * HOUR_MS and found.ts.max() <= end - 600_000 and len(found.ts) < 1350
    assert len(set(found.codes["surface"].tolist())) == 1 and found.codes["surface"][0] > 0
    assert set(found.codes["hour"].tolist()) == set(range(8))
    done = recalibrate(every, model.calibration, ("surface",))
    assert done.after["predicted"] < done.before["predicted"]
    made = write_recalibrated(model, done.calibration, tmp_path / "again")
    again = registry.load_model(tmp_path / "again")
    assert again.id == made != ident and again.calibration == done.calibration and again.name == "net"
    assert f"From `{ident}`" in (tmp_path / "again" / "card.md").read_text()
    with pytest.raises(StreamDmginError, match="is there already"):
        write_recalibrated(model, done.calibration, tmp_path / "again")
