"""After the time that is set, no file at the location of the snapshots holds anything of an erased user."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.restore import plan, restore
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.worker.snapshots import snapshot
from tests.e2e.test_recovery import beside, some
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write

USER = "~~k7Qx93vZ-erase-me-Wp41"  # the last key of its kind, so RocksDB's list of files names it, too
DAY_MS = 86_400_000


def holding(place: Path, what: bytes) -> set[str]:
    """Names of the files that hold these bytes."""
    return {f.name for f in place.rglob("*") if f.is_file() and what in f.read_bytes()}


def state(capsys: pytest.CaptureFixture[str], settings: Settings, *args: str, code: int = 0) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        main(["state", *args, "--log", settings.log, "--data-dir", str(settings.data_dir), "-o", "json"])
    assert int(e.value.code or 0) == code
    return json.loads(capsys.readouterr().out)


def test_by_the_time_that_is_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setenv("STREAM_DMGIN_SNAPSHOT_TO", str(kept))
    settings = settings_of(
        tmp_path, **{"snapshot.to": str(kept), "snapshot.every_s": 1, "snapshot.keep": 1000, "snapshot.erase_within_days": 1e-5}
    )  # fmt: skip
    make_topics(settings)
    theirs = [event(USER, 900_000 + k, t) for k in range(40) for t in ("clicks", "impressions")]
    write(settings, [*some(1), *theirs])
    place = Place(str(kept))
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        w.loop.commit()
        first = beside(w, lambda: snapshot(settings.data_dir, str(kept), None))["id"]
        assert holding(kept, USER.encode())
        would = state(capsys, settings, "erase", USER, "--dry-run")["snapshots"]
        assert would["to"] == str(kept)
        assert would["free_by"] == pytest.approx(time.time() * 1000 + 14 * DAY_MS, abs=300_000)  # the default, here
        done = state(capsys, settings, "erase", USER, "--yes", "--wait", "0")
        turn_until(w, lambda: (settings.data_dir / "audit.log").read_text().count('"erased"'), "the erasure")
        write(settings, some(2, 100))
        p = done["partitions"][0]["partition"]

        def free() -> bool:
            return first not in place.ids(p) and all(place.manifest(p, i).free_of for i in place.ids(p))

        turn_until(w, free, "snapshots that are free of the user")
    assert place.ids(p) and first in place.ids(1 - p)  # where the user never was
    of_p = kept / f"p{p:05d}"
    assert not holding(of_p, USER.encode()) and not holding(kept / "groups", USER.encode())
    back = tmp_path / "back"
    what = plan(place, back, None)
    assert not restore(place, back, what, None)["failed"]
    stores = Stores.of(back)
    for q in stores.present():
        engine = stores.open(q)
        assert USER not in set(engine.users())
        engine.close()
    assert not holding(back, USER.encode())
    lines = [json.loads(line) for line in (settings.data_dir / "audit.log").read_text().splitlines()]
    ordered = next(a for a in lines if a["action"] == "erase ordered")
    assert ordered["snapshots_free_by"] == done["snapshots"]["free_by"]
    gone = [a for a in lines if a["action"] == "snapshots of erased users deleted"]
    assert first in {i for a in gone for i in a["ids"]}


def test_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    settings = settings_of(tmp_path)
    make_topics(settings)
    write(settings, [*some(3), *[event(USER, 900_000 + k) for k in range(40)]])
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
    place = Place(str(kept))
    first = snapshot(settings.data_dir, str(kept), None)["id"]
    done = state(capsys, settings, "erase", USER, "--yes")
    assert done["snapshots"] == {"to": None, "free_by": None} and done["partitions"][0]["erased_here"]
    p = done["partitions"][0]["partition"]
    forget = ("forget", "--from", str(kept), "--yes")
    assert state(capsys, settings, *forget, code=1)["held"] == [{"partition": p, "id": first}]
    snapshot(settings.data_dir, str(kept), None)  # not compacted: not free
    assert len(state(capsys, settings, *forget, code=1)["held"]) == 2 and len(place.ids(p)) == 2
    state(capsys, settings, "compact")
    third = snapshot(settings.data_dir, str(kept), None)["id"]
    assert len(state(capsys, settings, *forget, "--dry-run")["deleted"]) == 2 and len(place.ids(p)) == 3
    assert holding(kept / f"p{p:05d}", USER.encode())
    assert len(state(capsys, settings, *forget)["deleted"]) == 2 and place.ids(p) == [third]
    assert not holding(kept / f"p{p:05d}", USER.encode()) and len(place.ids(1 - p)) == 3
    back = tmp_path / "back"
    restore(place, back, plan(place, back, None), None)
    assert diff(Stores.of(settings.data_dir), Stores.of(back))["ok"]
    # a later erasure of the same user needs a compaction of its own
    write(settings, [event(USER, 950_000 + k) for k in range(5)])
    with running(settings) as w:
        turn_until(w, folded(w), "the new life")
    fourth = snapshot(settings.data_dir, str(kept), None)["id"]
    state(capsys, settings, "erase", USER, "--yes")
    held = state(capsys, settings, *forget, code=1)["held"]
    assert {h["id"] for h in held} == {third, fourth}
