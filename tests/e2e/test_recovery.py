"""Snapshots of running workers, and workers that come back from them: state is the whole fold, whatever was damaged."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.restore import plan, restore
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from stream_dmgin.state.snapshots.place import Place, SnapshotsUnavailable
from stream_dmgin.worker import admin, recovery
from stream_dmgin.worker.compact import compact_all
from stream_dmgin.worker.fetching import Progress
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.recovery import Recovery
from stream_dmgin.worker.run import Worker
from stream_dmgin.worker.snapshots import snapshot
from tests.workers import PATIENCE_S, event, folded, make_topics, running, settings_of, turn_until, write

numbers = itertools.count()
TOPICS = ("impressions", "clicks", "post-clicks")


@pytest.fixture
def url() -> str:
    return f"memory://r{next(numbers)}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    s = settings_of(tmp_path)
    make_topics(s)
    return s


def some(seed: int, n: int = 800) -> list[tuple[str, bytes | None, bytes | None]]:
    r = random.Random(seed)
    return [event(f"u{r.randrange(40)}", seed * 100_000 + k, r.choice(TOPICS)) for k in range(n)]


def beside(w: Worker, job: Callable[[], Any]) -> Any:
    """What `job` returns, run in another thread while the worker turns."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(job())
        except BaseException as e:
            out.append(e)

    t = threading.Thread(target=run)
    t.start()
    turn_until(w, lambda: not t.is_alive(), "a job beside the worker")
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


def fold_all(s: Settings, **kwargs: Any) -> int:
    """Events that a worker reads until everything is folded."""
    with running(s, **kwargs) as w:
        turn_until(w, folded(w), "the fold")
        return w.loop.totals.events


def check(s: Settings) -> None:
    with open_log(s.log) as log:
        report = verify(Stores.of(s.data_dir), log, everyone=True)
    assert report.ok and report.checked == 40


def test_a_snapshot_while_folding_is_the_state_at_its_offsets(settings: Settings, tmp_path: Path, url: str) -> None:
    write(settings, some(1))
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        first = beside(w, lambda: snapshot(settings.data_dir, url, None))
        write(settings, some(2))
        w.loop.turn(0.02)  # the worker is in the midst of them
        done = beside(w, lambda: snapshot(settings.data_dir, url, None))
        assert done["partitions"] == [0, 1] and done["pause_ms"] > 0
        turn_until(w, folded(w), "the fold")
        assert admin.workers(settings.data_dir)
    for k, id_ in enumerate((first["id"], done["id"])):
        at = settings_of(tmp_path, f"at{k}")
        place = Place(url)
        assert restore(place, at.data_dir, plan(place, at.data_dir, id_), id_)["partitions"] == [0, 1]
        check(at)
        assert sum(sum(o.values()) for o in plan(place, at.data_dir, id_).as_dict()["offsets"].values()) > 0
        fold_all(at)
        assert diff(Stores.of(settings.data_dir), Stores.of(at.data_dir))["ok"]


def test_an_empty_directory_recovers_from_the_newest_snapshot(
    settings: Settings, tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "g.csv").write_text("item_id,group\n" + "".join(f"i{k},{k % 5}\n" for k in range(30)))
    first = settings_of(tmp_path, **{"worker.groups": str(tmp_path / "g.csv")})
    write(settings, some(1))
    fold_all(first)
    snapshot(first.data_dir, url, None)
    write(settings, some(2, 100))
    again = settings_of(tmp_path, "again", **{"snapshot.to": url, "snapshot.every_s": 0})
    with caplog.at_level(logging.INFO):
        assert fold_all(again) == 100  # the tail, and nothing else
    assert caplog.text.count("restored from snapshot") == 2 and "records are to be folded" in caplog.text
    assert Stores.of(again.data_dir).groups_id.startswith("csv-")  # the map came with the snapshot
    fold_all(first)
    assert diff(Stores.of(first.data_dir), Stores.of(again.data_dir))["ok"]
    check(again)
    assert fold_all(again) == 0  # the store is here now


def test_damaged_snapshots_fall_back_to_older_ones_and_to_the_log(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    for seed in (1, 2):
        write(settings, some(seed))
        fold_all(settings)
        snapshot(settings.data_dir, str(kept), None)
    newest = Place(str(kept)).ids(0)[0]
    (kept / f"p00000/{newest}.json").write_text("{")  # partition 0: the newest is torn
    for blob in (kept / "p00001/blobs").iterdir():  # partition 1: nothing is good
        blob.write_bytes(b"x" * blob.stat().st_size)
    again = settings_of(tmp_path, "again", **{"snapshot.to": str(kept), "snapshot.every_s": 0})
    with caplog.at_level(logging.INFO):
        events = fold_all(again)
    assert 800 < events < 1600
    assert "torn" in caplog.text and "partition 0: restored" in caplog.text
    assert "partition 1: no good snapshot, the whole log is folded" in caplog.text
    check(again)


def test_a_location_that_is_away_costs_the_whole_log(
    settings: Settings, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(settings, some(1))
    fold_all(settings)
    snapshot(settings.data_dir, url, None)

    def away(*_: object) -> None:
        raise SnapshotsUnavailable("no route")

    monkeypatch.setattr(recovery, "RETRIES_S", (0.0,))
    monkeypatch.setattr(Place, "get_blob", away)
    again = settings_of(tmp_path, "again", **{"snapshot.to": url, "snapshot.every_s": 0})
    assert fold_all(again) == 800
    assert "no route" in caplog.text
    assert not list((again.data_dir / "state").glob("restoring-p*/"))
    check(again)


def test_what_a_snapshot_must_be_to_be_good(settings: Settings, tmp_path: Path, url: str) -> None:
    write(settings, some(1))
    fold_all(settings)
    snapshot(settings.data_dir, url, None)
    names = [settings.topic(t) for t in TOPICS]
    (tmp_path / "other.csv").write_text("item_id,group\ni1,7\n")
    with open_log(settings.log) as log:
        begins, ends = {t: log.begins(t) for t in names}, {t: log.ends(t) for t in names}
    more = {t: {**e, 2: 0} for t, e in ends.items()}
    for k, (b, e, values, word) in enumerate(
        (
            (begins, ends, {}, ""),
            ({**begins, names[1]: {0: 10**6, 1: 0}}, ends, {}, "records between are gone"),
            (begins, {**ends, names[1]: {0: 1, 1: 1}}, {}, "of another log"),
            (begins, more, {}, "with 2 partitions, now there are 3"),
            (begins, ends, {"prefix": "other."}, "of the topics"),
            (begins, ends, {"worker.groups": str(tmp_path / "other.csv")}, ""),  # the map has grown, from none
        )
    ):
        s = settings_of(tmp_path, f"d{k}", **{"snapshot.to": url, **values})
        r = Recovery(s)
        r.groups()
        if "prefix" in values:
            b, e = ({s.prefix + t: x[settings.topic(t)] for t in TOPICS} for x in (b, e))
        done = r._one(0, b, e, Progress(Health()))
        assert (done.manifest is None) == bool(word)
        assert word in "".join(done.problems)


def test_a_snapshot_of_another_group_map_goes_over_to_the_workers(settings: Settings, tmp_path: Path, url: str) -> None:
    for name, shift in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.csv").write_text(
            "item_id,group\n" + "".join(f"i{k},{(k + shift) % 5}\n" for k in range(9))
        )
    write(settings, some(1))
    a = settings_of(tmp_path, "a", **{"worker.groups": str(tmp_path / "a.csv")})
    fold_all(a)
    snapshot(a.data_dir, url, None)
    b = settings_of(
        tmp_path, "b", **{"worker.groups": str(tmp_path / "b.csv"), "snapshot.to": url, "snapshot.every_s": 0}
    )
    with running(b) as w:
        new = w.partitions.groups.id
        turn_until(w, lambda: [o.engine.groups.id for o in w.partitions.owned.values()] == [new, new], "the new map")
    check(b)
    assert Stores.of(b.data_dir).groups_id == new != Stores.of(a.data_dir).groups_id


def test_a_worker_takes_snapshots_by_itself(settings: Settings, tmp_path: Path, url: str) -> None:
    write(settings, some(1))
    s = settings_of(tmp_path, **{"snapshot.to": url, "snapshot.every_s": 1, "snapshot.keep": 2})
    place = Place(url)
    with running(s) as w:
        turn_until(w, lambda: place.ids(0) and place.ids(1), "a snapshot")
        first = place.ids(0)[-1]
        turn_until(w, lambda: first not in place.ids(0), "the end of the first one")
        assert len(place.ids(0)) <= 3
        text = w.health.metrics.text().decode()
        assert 'sdmgin_snapshots_total{outcome="ok"}' in text and "sdmgin_last_snapshot_timestamp_seconds" in text
    again = settings_of(tmp_path, "again", **{"snapshot.to": url, "snapshot.every_s": 0})
    assert fold_all(again) == 0
    check(again)


def test_a_failing_location_does_not_hurt_the_fold(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    s = settings_of(tmp_path, **{"snapshot.to": str(tmp_path / "file/below"), "snapshot.every_s": 1})
    write(settings, some(1))
    with running(s) as w:
        turn_until(w, lambda: b'sdmgin_snapshots_total{outcome="failed"}' in w.health.metrics.text(), "a failure")
        turn_until(w, folded(w), "the fold")
    check(s)


def test_compaction_beside_a_running_worker(settings: Settings, tmp_path: Path) -> None:
    write(settings, some(1))
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        write(settings, some(2))
        done = beside(w, lambda: compact_all(settings.data_dir, None))
        assert [(p["partition"], p["running"]) for p in done["partitions"]] == [(0, True), (1, True)]
        one = beside(w, lambda: compact_all(settings.data_dir, 1))
        assert [p["partition"] for p in one["partitions"]] == [1]
        turn_until(w, folded(w), "the fold")
    check(settings)


def test_a_store_closes_while_it_is_compacted(settings: Settings) -> None:
    write(settings, some(1))
    fold_all(settings)
    stores = Stores.of(settings.data_dir)
    engine = stores.open(0, read_only=False)
    begun, closed = threading.Event(), threading.Event()
    seen: list[str] = []

    def compact() -> None:
        slices = engine.compact()
        begun.set()
        closed.wait(PATIENCE_S)
        try:
            list(slices)
        except StreamDmginError as e:
            seen.append(str(e))

    t = threading.Thread(target=compact)
    t.start()
    assert begun.wait(PATIENCE_S)
    engine.close()
    closed.set()
    t.join(PATIENCE_S)
    assert seen and "closed" in seen[0]
    stores.open(0, read_only=False).close()


def test_not_ready_while_stores_are_fetched() -> None:
    h = Health()
    h.assigned = True
    assert h.ready()[0] == 200
    h.restore_bytes = 5
    assert h.ready()[0] == 503 and h.ready()[1]["restore_remaining_bytes"] == 5


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_kafka_and_processes(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Snapshot beside a running worker; the machine is lost; the next worker has the snapshot and the tail."""
    kept, data = tmp_path / "kept", tmp_path / "data"
    target = settings_of(tmp_path, log=f"kafka://{kafka}", prefix=prefix)
    make_topics(target, 4)
    log = ["--log", f"kafka://{kafka}", "--prefix", prefix]
    worker = [sys.executable, "-m", "stream_dmgin.cli.main", "worker", *log, "--data-dir", str(data), "--no-score"]

    def until_end(**env: str) -> Any:
        p = subprocess.run(
            [*worker, "--until-end", "-o", "json"], capture_output=True, text=True, timeout=200, check=False,
            env={**os.environ, **env},
        )  # fmt: skip
        assert p.returncode == 0, p.stderr[-2000:]
        return json.loads(p.stdout)["events"], p.stderr

    write(target, some(1))
    assert until_end()[0] == 800
    process = subprocess.Popen([*worker, "--http", "off"])
    try:
        write(target, some(2, 200))
        taken = snapshot(data, str(kept), None)
        assert sorted(taken["offsets"]) == ["0", "1", "2", "3"]
    finally:
        process.kill()
        process.wait()
    shutil.rmtree(data)
    write(target, some(3, 150))
    events, said = until_end(STREAM_DMGIN_SNAPSHOT_TO=str(kept), STREAM_DMGIN_SNAPSHOT_EVERY_S="0")
    assert events == 1150 - sum(sum(o.values()) for o in taken["offsets"].values())
    assert said.count("restored from snapshot") == 4
    check(target)
