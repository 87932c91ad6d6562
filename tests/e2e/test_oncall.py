"""`state stats`, `lag`, `doctor`: on a sound installation, and with what is wrong in it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.log.base import open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.settings import Settings
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.worker.doctor import examine
from stream_dmgin.worker.snapshots import snapshot
from tests.workers import PATIENCE_S, event, folded, make_topics, running, settings_of, turn_until, write

PARTITIONS = 2


@pytest.fixture(params=["file", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Settings:
    more = {"prefix": prefix}
    if request.param == "kafka":
        more |= {"log": f"kafka://{request.getfixturevalue('kafka')}", "worker.group": f"{prefix}workers"}
    s = settings_of(tmp_path, **more)
    make_topics(s, PARTITIONS)
    return s


def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, s: Settings, *args: str, text: bool = False
) -> tuple[int, Any]:
    monkeypatch.setenv("STREAM_DMGIN_WORKER_GROUP", s["worker.group"])
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        main(
            [
                *args,
                "--log",
                s.log,
                "--data-dir",
                str(s.data_dir),
                "--prefix",
                s.prefix,
                *(() if text else ("-o", "json")),
            ]
        )
    out = capsys.readouterr()
    return int(e.value.code or 0), out.out + out.err if text else json.loads(out.out)


def now(k: int, user: str) -> tuple[str, bytes, bytes]:
    return event(user, k)


def test_lag_and_stats_and_doctor(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = settings.topic("clicks")
    write(
        settings,
        [event(f"u{k % 7}", k) for k in range(100)] + [event("hot", k, item_id=f"h{k}") for k in range(200, 500)],
    )
    code, d = cli(capsys, monkeypatch, settings, "lag")
    assert code == 0 and d["lag"] == 400  # no store, no group: all of it
    assert {r["store"] for r in d["partitions"]} == {None} and {r["committed"] for r in d["partitions"]} == {-1}
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        w.loop.commit()
        assert cli(capsys, monkeypatch, settings, "lag")[1]["lag"] == 0
        write(settings, [event("u1", 1000), event("u1", 1001)])
        code, d = cli(capsys, monkeypatch, settings, "lag")
        p = partition_of(b"u1", PARTITIONS)
        (row,) = [r for r in d["partitions"] if r["lag"]]
        assert (row["topic"], row["partition"], row["lag"]) == (topic, p, 2) and row["end"] == row["store"] + 2
        assert row["lag_s"] == d["lag_s"] > 0
        assert "2 records behind" in cli(capsys, monkeypatch, settings, "lag", text=True)[1]

        # a running worker tells of its stores; its loop must turn meanwhile, here in this thread
        told: list[Any] = []
        asker = threading.Thread(target=lambda: told.append(cli(capsys, monkeypatch, settings, "state", "stats")))
        asker.start()
        until = time.monotonic() + PATIENCE_S
        while asker.is_alive() and time.monotonic() < until:
            w.loop.turn(0.02)
        asker.join(1)
        code, d = told[0]
        assert code == 0
        assert all(p["running"]["users_cached"] > 0 and p["running"]["write_stopped"] is False for p in d["partitions"])
        assert len(d["partitions"][0]["files_by_level"]) == 7
    code, d = cli(capsys, monkeypatch, settings, "state", "stats")
    assert all(p["running"] is None for p in d["partitions"])
    hot = d["hottest_by_events"][0]
    assert hot == {"user_id": "hot", "partition": partition_of(b"hot", PARTITIONS), "events": 300, "groups": 300}
    assert d["hottest_by_groups"][0]["user_id"] == "hot"
    assert (d["users_with_spilled_groups"], d["spilled_groups"]) == (1, 172)
    assert "hottest by groups" in cli(capsys, monkeypatch, settings, "state", "stats", text=True)[1]

    code, d = cli(capsys, monkeypatch, settings, "doctor")
    assert code == 0 and d["ok"], d
    checks = {f["check"] for f in d["findings"]}
    assert checks >= {"python", "disk", "log", "topics", "partitioner", "clock", "stores", "data directory"}
    assert cli(capsys, monkeypatch, settings, "doctor", text=True) == (
        0,
        f"{len(d['findings'])} checks, nothing wrong\n",
    )


def wrong(d: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [f for f in d["findings"] if f["check"] == check and not f["ok"]]


def test_what_doctor_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings_of(tmp_path)
    make_topics(s, PARTITIONS)
    write(s, [event(f"u{k}", k) for k in range(40)])
    with running(s) as w:
        turn_until(w, folded(w), "the fold")
    with open_log(s.log) as log:
        log.configure("dmgin.clicks", {"retention.ms": "60000"})
        writer = log.writer()
        bad = 1 - partition_of(b"stray", PARTITIONS)
        e = {"user_id": "stray", "item_id": "i", "ts": 1_760_000_000_000}
        writer.append(
            "dmgin.clicks", b"stray", msgpack.packb(e), partition=bad, timestamp=int((time.time() + 5000) * 1000)
        )
        writer.flush()
        writer.close()
    secret = tmp_path / "stream-dmgin.toml"
    secret.write_text('[kafka]\n"sasl.password" = "x"\n')
    secret.chmod(0o644)
    monkeypatch.setenv("STREAM_DMGIN_CONFIG", str(secret))
    monkeypatch.setenv("STREAM_DMGIN_WORKER_DISK_FREE_MB", str(10**9))
    code, d = cli(capsys, monkeypatch, s, "doctor")
    assert code == 1 and not d["ok"]
    assert "retention.ms" in wrong(d, "topics")[0]["found"] and "topics apply" in wrong(d, "topics")[0]["fix"]
    assert (
        "1 of the newest" in wrong(d, "partitioner")[0]["found"]
        and "murmur2_random" in wrong(d, "partitioner")[0]["fix"]
    )
    assert "ahead of" in wrong(d, "clock")[0]["found"]
    assert wrong(d, "disk") and "chmod 600" in wrong(d, "secrets")[0]["fix"]
    assert all(f["fix"] for f in d["findings"] if not f["ok"])
    code, text = cli(capsys, monkeypatch, s, "doctor", text=True)
    assert code == 1 and "fix: stream-dmgin topics apply" in text
    assert "WRONG  disk: " in text and "disk: disk:" not in text

    other = settings_of(tmp_path, log=f"file:{tmp_path / 'other'}")  # a log that doesn't hold what the store has folded
    make_topics(other, PARTITIONS)
    code, d = cli(capsys, monkeypatch, other, "doctor")
    assert code == 1 and "another log" in wrong(d, "stores")[0]["fix"]
    code, d = cli(capsys, monkeypatch, settings_of(tmp_path, log="kafka://127.0.0.1:1"), "doctor")
    assert code == 1 and "127.0.0.1:1" in wrong(d, "log")[0]["found"]
    if os.geteuid() != 0:
        s.data_dir.chmod(0o500)
        assert wrong(cli(capsys, monkeypatch, s, "doctor")[1], "data directory")
        s.data_dir.chmod(0o700)


def test_doctor_looks_at_the_location_of_the_snapshots(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    s = settings_of(tmp_path, **{"snapshot.to": str(kept), "snapshot.every_s": 100})
    make_topics(s, PARTITIONS)
    write(s, [event(f"u{k}", k) for k in range(40)])
    with running(s) as w:
        turn_until(w, folded(w), "the fold")

    def looked() -> tuple[bool, str]:
        f = next(f for f in examine(s) if f.check == "snapshots")
        assert f.ok or f.fix
        return f.ok, f.found

    assert looked() == (True, f"{kept} does not exist yet") and not kept.exists()
    snapshot(s.data_dir, str(kept), None)
    ok, found = looked()
    assert ok and "2 partitions" in found and not [f for f in kept.iterdir() if f.is_file()]
    for path in kept.glob("p*/*.json"):
        m = Manifest.decode(path.read_bytes(), "x")
        fields = {f: getattr(m, f) for f in m.__struct_fields__}
        path.write_bytes(Manifest(**{**fields, "created_ms": m.created_ms - 500_000}).encode())
    ok, found = looked()
    assert not ok and " s old" in found
    kept.rename(tmp_path / "away")
    kept.write_text("")
    ok, found = looked()
    assert not ok and "is a file" in found
