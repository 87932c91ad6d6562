"""What only the embedded log promises: survival of killed processes, bytes on disk, one owner a group."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from stream_dmgin.errors import FormatError, LogUnavailable, UsageError
from stream_dmgin.log import embedded_files, embedded_reader, frames
from stream_dmgin.log.base import TP, Log, Record, TopicInfo, open_log

TOPIC, PARTITIONS = "t", 3


def make(path: Path) -> Log:
    log = open_log(f"file:{path}")
    log.create([TopicInfo(TOPIC, PARTITIONS, {})])
    return log


def everything(log: Log) -> list[Record]:
    ends = {(TOPIC, p): e for p, e in log.ends(TOPIC).items()}
    reader = log.reader([TOPIC])
    reader.assign(dict.fromkeys(ends, 0))
    out: list[Record] = []
    while len(out) < sum(ends.values()):
        batch = reader.poll(997, 5.0)
        assert batch is not None
        out += [batch.record(i) for i in range(len(batch))]
        batch.release()
    reader.close()
    return out


KILLED = """
import sys
from stream_dmgin.log.base import open_log
log = open_log(sys.argv[1])
w = log.writer(linger_ms=float(sys.argv[3]))
def told(error, tp, offset):
    assert error is None
    print(tp[1], offset, flush=True)
i = 0
while True:
    w.append("t", b"user%d" % (i % 40), f"{sys.argv[2]}:{i}:".encode() + bytes(i % 3000), on_delivery=told)
    w.poll()
    i += 1
"""


def test_killed_writers_lose_nothing_acknowledged_and_harm_nobody(tmp_path: Path) -> None:
    """Two writers at a time, each SIGKILLed at a random moment, and begun again."""
    chance = random.Random(1)
    log = make(tmp_path)
    told: dict[tuple[int, int], str] = {}
    for turn in range(3):
        pairs = []
        for name in (f"a{turn}", f"b{turn}"):
            out = (tmp_path / name).open("w+")
            args = [sys.executable, "-c", KILLED, log.url, name, str(chance.choice([0, 1, 5]))]
            pairs.append((name, out, subprocess.Popen(args, stdout=out)))
        for _, out, _ in pairs:
            end = time.monotonic() + 30
            while os.fstat(out.fileno()).st_size < 1000:
                assert time.monotonic() < end
                time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        for name, out, child in pairs:
            child.send_signal(signal.SIGKILL)
            child.wait()
            out.seek(0)
            for line in out.read().split("\n")[:-1]:  # the last may be torn
                partition, offset = map(int, line.split())
                assert (partition, offset) not in told
                told[partition, offset] = name
            out.close()
    records = everything(log)
    found = {(r.partition, r.offset): (r.value or b"").split(b":")[0].decode() for r in records}
    assert len(told) > 500
    assert told == {k: found.get(k) for k in told}
    for p in range(PARTITIONS):
        mine = [r for r in records if r.partition == p]
        assert [r.offset for r in mine] == list(range(len(mine)))
        last: dict[bytes, int] = {}
        for r in mine:
            name, number, rest = (r.value or b"").split(b":", 2)
            assert rest == bytes(int(number) % 3000)
            assert int(number) > last.get(name, -1)
            last[name] = int(number)
    log.close()


def test_what_a_dead_writer_left_behind_is_written_over(tmp_path: Path) -> None:
    log = make(tmp_path)
    writer = log.writer(linger_ms=0)
    writer.append(TOPIC, b"k", b"first", partition=0)
    files = log._files(TOPIC)  # type: ignore[attr-defined]
    at = files.committed(0)
    torn = frames.pack_frame([frames.pack_record(b"k", b"never committed", 1, ())] * 3, 1, 1)
    os.pwrite(files.fd(0), torn[:-7], at)  # killed in the middle of the write
    assert [r.value for r in everything(log)] == [b"first"]
    writer.append(TOPIC, b"k", b"second", partition=0)
    writer.close()
    assert [(r.offset, r.value) for r in everything(log)] == [(0, b"first"), (1, b"second")]


def test_a_power_cut_cuts_back_to_the_last_whole_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = make(tmp_path)
    writer = log.writer(linger_ms=0)
    for i in range(200):
        writer.append(TOPIC, b"k", bytes(1000) + b"%d" % i, partition=0, timestamp=i)
        writer.append(TOPIC, b"k", b"%d" % i, partition=1, timestamp=i)
    writer.close()
    path = tmp_path / "topics" / TOPIC / "0.log"
    files = log._files(TOPIC)  # type: ignore[attr-defined]
    starts = [at for at, _ in files.frames(0, 0, files.committed(0))]
    log.close()
    with path.open("r+b") as f:  # a page that never reached the disk
        f.seek(starts[150] + 500)
        f.write(bytes(300 * 1000 // 3))
    (tmp_path / "boot").write_text("another boot")
    with open_log(f"file:{tmp_path}") as again:
        assert "had not reached the disk" in caplog.text
        assert again.ends(TOPIC) == {0: 150, 1: 200, 2: 0}
        assert again.offsets_for_time(TOPIC, 149) == {0: 149, 1: 149, 2: 0}
        more = again.writer(linger_ms=0)
        more.append(TOPIC, b"k", b"goes on", partition=0, timestamp=500)
        more.close()
        records = [r for r in everything(again) if r.partition == 0]
        assert [r.offset for r in records] == list(range(151)) and records[-1].value == b"goes on"
        assert again.offsets_for_time(TOPIC, 150)[0] == 150


def test_bytes_that_nobody_wrote_are_a_clear_error(tmp_path: Path) -> None:
    log = make(tmp_path)
    writer = log.writer(linger_ms=0)
    for _ in range(10):
        writer.append(TOPIC, b"k", b"v" * 100, partition=0)
    with (tmp_path / "topics" / TOPIC / "0.log").open("r+b") as f:
        f.write(b"garbage" * 10)
    reader = log.reader([TOPIC])
    reader.assign({(TOPIC, 0): 0})
    with pytest.raises(FormatError, match=r"0\.log is corrupt at byte 0"):
        reader.poll(10, 1.0)


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path).close()
    (tmp_path / "log.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(FormatError, match="format 99"):
        open_log(f"file:{tmp_path}")


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable, match="can't be used"):
        open_log(f"file:{tmp_path / 'file' / 'log'}")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "x" * 300])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        make(tmp_path).create([TopicInfo(name, 1, {})])


def test_a_limit_beyond_what_frames_hold_is_refused(tmp_path: Path) -> None:
    log = make(tmp_path)
    with pytest.raises(UsageError, match=r"max\.message\.bytes=99999999 can't be used"):
        log.configure(TOPIC, {"max.message.bytes": "99999999"})
    with pytest.raises(UsageError):
        log.create([TopicInfo("u", 1, {"max.message.bytes": "many"})])


FULL = """
import resource, sys
from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log.base import open_log
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = open_log(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # as a full disk: the file can't grow
w, told = log.writer(), []
for i in range(300):
    w.append("t", b"k", bytes(10_000), partition=0, on_delivery=lambda e, tp, o: told.append((e, o)))
    if i % 10 == 9:
        w.flush()
good = [o for e, o in told if e is None]
bad = [e for e, o in told if e is not None]
assert len(told) == 300 and good == list(range(len(good))) and 50 < len(good) < 110, len(good)
assert all(isinstance(e, LogUnavailable) and "was not written" in str(e) for e in bad)
w.append("t", b"k", bytes(500_000), partition=0)
try:
    w.flush()
except LogUnavailable:
    print(len(good))
"""


def test_a_full_disk_is_told_and_leaves_the_log_whole(tmp_path: Path) -> None:
    log = make(tmp_path)
    done = subprocess.run([sys.executable, "-c", FULL, log.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(everything(log)) == int(done.stdout)


OWNER = """
import sys, time
from stream_dmgin.log.base import open_log
class Listener:
    def assigned(self, partitions): print("mine", flush=True); return {tp: 0 for tp in partitions}
    def revoked(self, partitions): pass
    def lost(self, partitions): pass
r = open_log(sys.argv[1]).group_reader("g", ["t"], Listener())
while True: r.poll(10, 1.0)
"""


def test_when_the_owner_of_a_group_is_killed_the_next_takes_over(tmp_path: Path) -> None:
    class Listener:
        mine: list[TP] = []

        def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
            self.mine = partitions
            return dict.fromkeys(partitions, 0)

        def revoked(self, partitions: list[TP]) -> None:
            self.mine = []

        lost = revoked

    log, listener = make(tmp_path), Listener()
    child = subprocess.Popen([sys.executable, "-c", OWNER, log.url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "mine\n"
    reader = log.group_reader("g", [TOPIC], listener)
    assert reader.poll(10, 0.3) is None and not listener.mine
    child.kill()
    child.wait()
    child.stdout.close()
    start = time.monotonic()
    while not listener.mine:
        reader.poll(10, 0.05)
        assert time.monotonic() - start < 2
    assert listener.mine == [(TOPIC, p) for p in range(PARTITIONS)]
    reader.commit({(TOPIC, 0): 7})
    reader.close()
    assert json.loads((tmp_path / "groups" / "g.json").read_text()) == {TOPIC: {"0": 7}}


def test_an_idle_reader_costs_next_to_nothing(tmp_path: Path) -> None:
    log = make(tmp_path)
    reader = log.reader([TOPIC])
    reader.assign(dict.fromkeys([(TOPIC, p) for p in range(PARTITIONS)], 0))
    reader.poll(10, 0.01)
    before = time.process_time()
    assert reader.poll(10, 1.0) is None
    assert time.process_time() - before < 0.15  # 1 to 2 % of a core on an idle machine


def test_files_grow_past_a_window_and_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads over the borders of mappings; seeks by the index."""
    monkeypatch.setattr(embedded_reader, "WINDOW_BYTES", 18 << 20)
    log = make(tmp_path)
    writer = log.writer(linger_ms=50)
    for i in range(40_000):
        writer.append(TOPIC, b"k", b"%08d" % i + bytes(1000), partition=0, timestamp=i)
    writer.close()
    records = everything(log)
    assert [r.offset for r in records] == list(range(40_000))
    assert all((r.value or b"")[:8] == b"%08d" % r.offset for r in records)
    for offset in (1, 12_345, 39_999):
        reader = log.reader([TOPIC])
        reader.assign({(TOPIC, 0): offset})
        batch = reader.poll(1, 1.0)
        assert batch is not None and batch.offset[0] == offset and batch.timestamp[0] == offset
        batch.release()
        assert log.offsets_for_time(TOPIC, offset)[0] == offset


def test_a_stopped_process_that_holds_a_partition_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_files, "LOCK_S", 0.2)
    log, failed = make(tmp_path), list[BaseException | None]()
    with (tmp_path / "topics" / TOPIC / "0.log").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = log.writer(linger_ms=0)
        writer.append(TOPIC, b"k", b"v", partition=0, on_delivery=lambda e, tp, o: failed.append(e))
        writer.append(TOPIC, b"k", b"v", partition=1)  # others go on
        writer.poll()
        assert "another process has held it" in str(failed[0])
    writer.append(TOPIC, b"k", b"v", partition=0)
    writer.close()
    assert log.ends(TOPIC) == {0: 1, 1: 1, 2: 0}
