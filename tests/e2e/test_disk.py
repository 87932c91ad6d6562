"""A disk that is nearly full: no more events are taken, `/health/ready` says so, and the worker goes on when there is room."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_dmgin.errors import DiskFull, StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import ConfigError
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from stream_dmgin.worker.disk import MB, Disk, disk_full
from stream_dmgin.worker.run import Worker, run
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB; skipped where it can't be mounted."""
    at = tmp_path / "small"
    at.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(at)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def waits(w: Worker) -> bool:
    return bool(w.health.waiting)


def check_waiting(w: Worker) -> None:
    status, body = w.health.ready()
    assert status == 503 and body["waiting"].startswith("disk: ")
    assert b"sdmgin_waiting 1.0" in w.health.metrics.text()
    before = w.loop.totals.events
    for _ in range(20):
        w.loop.turn(0.01)
    assert w.loop.totals.events == before


def test_a_full_disk_stops_the_reader_and_room_starts_it_again(tmp_path: Path, small: Path) -> None:
    s = settings_of(tmp_path, str(small / "data"), **{"worker.disk_free_mb": 20})
    make_topics(s)
    write(s, [event(f"u{k % 50}", k) for k in range(500)])
    ballast = small / "ballast"
    with running(s) as w:
        turn_until(w, folded(w), "the fold")
        ballast.write_bytes(bytes(38 * MB))
        turn_until(w, lambda: waits(w), "the full disk to be seen")
        write(s, [event(f"u{k % 50}", k) for k in range(500, 900)])
        check_waiting(w)
        done = folded(w)
        assert not done()
        ballast.unlink()
        turn_until(w, lambda: not waits(w), "the room to be seen")
        turn_until(w, done, "the rest")
        assert b"sdmgin_waiting 0.0" in w.health.metrics.text()
        assert w.health.ready()[0] == 200


def test_a_disk_that_is_full_to_the_brim_is_said_and_loses_nothing(tmp_path: Path, small: Path) -> None:
    s = settings_of(tmp_path, str(small / "data"), **{"worker.disk_free_mb": 0})
    make_topics(s)
    write(s, [event(f"u{k % 50}", k) for k in range(500)])
    assert run(s, score=False, until_end=True)["events"] == 500
    ballast = small / "ballast"
    fill(ballast)
    write(s, [event(f"u{k % 50}", k) for k in range(500, 900)])
    for _ in range(2):  # and again at the next start
        with pytest.raises(
            DiskFull, match=r"the disk of \S+/data is full: 0\.\d MB are free.*Nothing is lost.*Make room"
        ) as e:
            run(s, score=False, until_end=True)
        assert e.value.exit_code == 1
    ballast.unlink()
    assert run(s, score=False, until_end=True)["events"] == 400
    with open_log(s.log) as log:
        assert verify(Stores.of(s.data_dir), log, everyone=True).ok


def fill(ballast: Path) -> None:
    with open(ballast, "wb", buffering=0) as f, contextlib.suppress(OSError):
        while True:
            f.write(bytes(1 << 16))
    with open(ballast, "ab", buffering=0) as f, contextlib.suppress(OSError):
        while True:
            f.write(bytes(1 << 12))


def test_what_comes_from_a_full_disk(tmp_path: Path) -> None:
    raw = Exception("IO error: No space left on device: While appending to file: 000012.log")
    try:
        raise StreamDmginError("partition 3: the state can't be written") from raw
    except StreamDmginError as e:
        assert "000012.log" in str(disk_full(e, tmp_path))
    assert disk_full(OSError(28, "No space left on device"), tmp_path / "not" / "there") is not None
    assert disk_full(ValueError("no"), tmp_path) is None


def test_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    """The same by a reserve that no disk has."""
    s = settings_of(tmp_path, **{"worker.disk_free_mb": 10**9})
    make_topics(s)
    with running(s) as w:
        turn_until(w, lambda: waits(w) and w.partitions.owned, "the full disk to be seen")
        w.loop.turn(0.1)
        write(s, [event("u1", 1)])
        check_waiting(w)
        assert w.loop.totals.events == 0
    with running(settings_of(tmp_path)) as w:
        turn_until(w, folded(w), "the fold")
        assert w.loop.totals.events == 1


def test_the_reserve_is_the_larger_of_two_and_has_two_edges() -> None:
    free = [1000 * MB]
    disk = Disk(Path("/"), 50, 10.0, ask=lambda path: (free[0], 1000 * MB))
    assert disk.look() == ""
    for mb, full in ((101, False), (99, True), (101, True), (109, True), (111, False), (101, False)):
        free[0] = mb * MB
        assert bool(disk.look()) == full, mb
    gone = Disk(Path("/nowhere/at/all"), 50, 0)
    assert gone.look() == ""


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for key, value in (("worker.disk_free_percent", 100), ("worker.disk_free_mb", -1), ("worker.stall_s", 0.5)):
        with pytest.raises(ConfigError, match=key):
            settings_of(tmp_path, **{key: value})
