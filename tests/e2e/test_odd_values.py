"""Everything that is well formed, however odd, is folded and answered: extreme numbers and times, ids of all kinds, items that
change or go, contexts that hold anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin import topics
from stream_dmgin.cli.main import main
from stream_dmgin.log.base import TopicInfo, open_log
from stream_dmgin.log.scan import scan
from stream_dmgin.records import TS_AHEAD, TS_MIN
from tests.streams import TRICKY_IDS

T = 1_760_000_000_000
TIMES = (TS_MIN, TS_MIN + 1, T - 10**9, T - 1, T, T + 1, T + TS_AHEAD)
NUMBERS = (0, -1, 1, 1.5, -180.0, 1e300, -1e300, 5e-324, 10**15, 2**63, 48.1, 11.5)


def events(r: random.Random) -> list[tuple[str, bytes, bytes]]:
    out = []
    for k in range(800):
        e: dict[str, Any] = {"user_id": r.choice(TRICKY_IDS), "item_id": r.choice(TRICKY_IDS), "ts": r.choice(TIMES)}
        e |= {"event_id": f"e{k}"} if r.random() < 0.7 else {}
        e |= {"type": r.choice(("order", "cart", "é", "t" * 64, "click", "impression", "\0"))}
        e |= {"dwell_ms": r.choice((0, 1, 2**32 - 1))} if r.random() < 0.5 else {}
        e |= {"value": r.choice((0, 1e12, 5e-324, 10**12, 0.1))} if r.random() < 0.5 else {}
        e |= {"lat": r.choice(NUMBERS), "lon": r.choice(NUMBERS)} if r.random() < 0.3 else {}
        out.append((r.choice(topics.EVENTS), e["user_id"].encode(), msgpack.packb(e)))
    return out


def items(r: random.Random) -> list[tuple[str, bytes, bytes | None]]:
    out: list[tuple[str, bytes, bytes | None]] = []
    for k in range(200):
        i: dict[str, Any] = {"item_id": r.choice(TRICKY_IDS)}
        for name in ("lat", "lon", "price"):
            if r.random() < 0.5:
                i[name] = r.choice(NUMBERS)
        for name in ("category", "advertiser", "name", "text"):
            if r.random() < 0.5:
                i[name] = r.choice(("", "c", "é" * 3000, "\0"))
        if r.random() < 0.3:
            i["attrs"] = {"n": r.choice(NUMBERS), "x": None, "y": [1], "z": {"a": True}, "": "s"}
        if r.random() < 0.3:
            i["embedding"] = [r.choice(NUMBERS) for _ in range(k % 5)]
        out.append(("items", i["item_id"].encode(), msgpack.packb(i)))
    return out


def requests(r: random.Random) -> list[tuple[str, bytes, bytes]]:
    out = []
    for k in range(50):
        u = r.choice((*TRICKY_IDS, "stranger"))
        q: dict[str, Any] = {"request_id": f"r{k}", "user_id": u, "ts": r.choice(TIMES)}
        q["candidates"] = r.choices((*TRICKY_IDS, "never seen"), k=r.choice((1, 2, 30)))
        q["context"] = r.choice((
            None, {}, {"lat": r.choice(NUMBERS), "lon": r.choice(NUMBERS), "surface": "s"}, {"lat": math.nan, "lon": math.inf},
            {"lat": "x", "lon": [], "surface": {"a": 1}}, {"surface": "é" * 5000, "lat": True}, {"surface": ""},
            {"page": r.choice(TRICKY_IDS)}, {"page": "never seen"}, {"page": 7}, {"page": ""},
        ))  # fmt: skip
        out.append(("requests", u.encode(), msgpack.packb(q)))
    return out


@pytest.mark.timeout(400)
def test_nothing_well_formed_stops_the_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = random.Random(11)
    url = f"file:{tmp_path / 'log'}"
    asked = requests(r)
    with open_log(url) as log:
        log.create(TopicInfo(f"dmgin.{t}", 2 if x.user_keyed else 1) for t, x in topics.ALL.items())
        w = log.writer()
        for topic, key, value in [*items(r), *events(r), *asked]:
            w.append(f"dmgin.{topic}", key, value, timestamp=T)
        w.flush()
        w.close()
    args = ["--log", url, "--data-dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as e:
        main(["worker", *args, "--until-end", "--http", "off", "-o", "json"])
    out = capsys.readouterr()
    assert not e.value.code, out.err[-2000:]
    done = json.loads(out.out)
    assert (done["events"], done["requests"], done["scores"], done["dead_letters"]) == (800, 50, 50, 0)
    with open_log(url) as log:
        ranges = {("dmgin.scores", p): (0, end) for p, end in log.ends("dmgin.scores").items()}
        scores = [
            msgpack.unpackb(b.value(i) or b"") for b, inside in scan(log, ranges) for i in range(len(b)) if inside[i]
        ]
    assert {s["request_id"] for s in scores} == {f"r{k}" for k in range(50)}
    for s in scores:
        assert s["status"] == "ok", s["reason"]
        assert len(s["ctr"]) == len(s["candidates"]) and all(0 < c < 1 for c in s["ctr"]), s
        assert all(0 <= p <= 1 for head in s["heads"].values() for p in head)
    with pytest.raises(SystemExit) as e:
        main(["state", "verify", *args])
    assert not e.value.code, capsys.readouterr().out
