"""One topic of the embedded log on disk: where its bytes are, how they are appended and found.

    DIR/log.json                    format version
    DIR/boot                        the machine's boot at which the files were last checked
    DIR/topics/NAME/topic.json      partitions, configuration (replaced by rename)
    DIR/topics/NAME/head            64 bytes a partition; the first 8: bytes of P.log that count ("committed")
    DIR/topics/NAME/P.log           frames (frames.py), and behind them zeros or what a dead writer left
    DIR/topics/NAME/P.index         32 bytes about every 64 KB: position, offset, greatest timestamp before it, 0
    DIR/groups/NAME.lock, .json     who owns the group's partitions; its commits

A writer holds flock on P.log, writes the frame behind the committed bytes, and then stores the new length into `head`: one
aligned 8-byte store into a shared mapping. Readers see the frame whole or not at all; a writer that dies in between leaves
bytes that the next one writes over. What was committed survives the death of any process. Like Kafka's, it is in the page
cache first: a power cut can take the last seconds, which is noticed at the first open after it (`check_frames`).
"""

from __future__ import annotations

import bisect
import fcntl
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import FormatError, LogUnavailable
from stream_dmgin.log import frames
from stream_dmgin.log.base import TopicInfo

SLOT_BYTES = 64  # of `head`, a cache line each
GROW_BYTES = 1 << 20  # files grow in such steps (sparse), so that readers map anew once a step
INDEX_EVERY = 64 << 10
LOCK_S = 30.0  # a writer holds a partition for milliseconds
INDEX = struct.Struct("<Qqqq")


class TopicFiles:
    """The open files of one topic. Opening is cheap; files of partitions are opened when first used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.info = read_info(directory)
        with open(directory / "head", "r+b") as f:
            self._map = mmap.mmap(f.fileno(), 0)
        words = np.frombuffer(self._map, np.uint64)
        if len(words) * 8 < SLOT_BYTES * self.info.partitions:
            raise FormatError(
                f"{directory / 'head'} is too short for {self.info.partitions} partitions: it was cut or overwritten"
            )
        self.head: NDArray[np.uint64] = words[:: SLOT_BYTES // 8]
        self._fds: dict[str, int] = {}

    def committed(self, partition: int) -> int:
        """Bytes of the partition that count."""
        return int(self.head[partition])

    def head_address(self, partition: int) -> int:
        """Address of the partition's commit word."""
        return int(self.head.ctypes.data) + SLOT_BYTES * partition

    def tail(self, partition: int, committed: int | None = None) -> tuple[int, int]:
        """(next offset, greatest timestamp so far) behind `committed` bytes. Raises FormatError."""
        at = self.committed(partition) if committed is None else committed
        if at == 0:
            return 0, frames.NO_TS
        raw = os.pread(self.fd(partition), frames.TAIL_BYTES, at - frames.TAIL_BYTES)
        if len(raw) == frames.TAIL_BYTES:
            following, max_ts, size = frames.TAIL.unpack(raw)
            head = os.pread(self.fd(partition), 4, at - size) if frames.HEAD_BYTES < size <= at else b""
            if head == frames.MAGIC.to_bytes(4, "little"):
                return following, max_ts
        raise self.corrupt(partition, at)

    def append(self, partition: int, records: list[bytes], max_ts: int) -> int:
        """Append one frame of packed records; returns the offset of the first. 15 us and what the bytes take.

        Raises LogUnavailable when the disk is full or fails; nothing is appended then.
        """
        fd = self.fd(partition)
        self._lock(fd, partition)
        try:
            at = self.committed(partition)
            first, before = self.tail(partition, at)
            frame = frames.pack_frame(records, first, max(before, max_ts))
            end = at + len(frame)
            if os.fstat(fd).st_size < end:
                os.ftruncate(fd, -(-end // GROW_BYTES) * GROW_BYTES)
            view, done = memoryview(frame), 0
            while done < len(frame):
                done += os.pwrite(fd, view[done:], at + done)
            self._index(partition, at, first, before)
            self.head[partition] = end
        except OSError as e:
            raise LogUnavailable(f"{self.path(partition)}: {e.strerror}: the record was not written") from e
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
        return int(first)

    def _lock(self, fd: int, partition: int) -> None:
        """flock, but not for ever: its holder may have been stopped by a debugger or a signal."""
        end = 0.0
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                now = time.monotonic()
                end = end or now + LOCK_S
                if now > end:
                    text = f"{self.path(partition)}: another process has held it for {LOCK_S:g} s: is that one stopped?"
                    raise LogUnavailable(text) from None
                time.sleep(0.0002)

    def _index(self, partition: int, at: int, first: int, before: int) -> None:
        """Written before the commit: an entry of a frame that never was describes its successor at that place as well."""
        fd = self.fd(partition, "index")
        count = os.fstat(fd).st_size // INDEX.size
        if count:
            last = INDEX.unpack(os.pread(fd, INDEX.size, (count - 1) * INDEX.size))[0]
            if at < last + INDEX_EVERY:
                return
        os.pwrite(fd, INDEX.pack(at, first, before, 0), count * INDEX.size)

    def index(self, partition: int) -> list[tuple[int, int, int]]:
        """(position, offset, greatest timestamp before) of the indexed frames."""
        fd, limit = self.fd(partition, "index"), self.committed(partition)
        raw = os.pread(fd, os.fstat(fd).st_size, 0)
        found = (INDEX.unpack_from(raw, i) for i in range(0, len(raw) - INDEX.size + 1, INDEX.size))
        return [(at, offset, before) for at, offset, before, _ in found if at < limit]

    def position(self, partition: int, offset: int) -> tuple[int, int]:
        """(position, first offset) of an indexed frame at or before `offset`; (0, 0) where there is none."""
        entries = self.index(partition)
        i = bisect.bisect_right(entries, offset, key=lambda e: e[1]) - 1
        return entries[i][:2] if i >= 0 else (0, 0)

    def offset_for_time(self, partition: int, timestamp: int) -> int:
        """The first offset whose timestamp is >= `timestamp`, or the end."""
        limit = self.committed(partition)
        end, max_ts = self.tail(partition, limit)
        if max_ts < timestamp:
            return end
        entries = self.index(partition)
        i = bisect.bisect_left(entries, timestamp, key=lambda e: e[2]) - 1
        fd = self.fd(partition)
        for at, size in self.frames(partition, entries[i][0] if i >= 0 else 0, limit):
            if frames.TAIL.unpack(os.pread(fd, frames.TAIL_BYTES, at + size - frames.TAIL_BYTES))[1] < timestamp:
                continue
            raw = os.pread(fd, size, at)
            offset, p = int(frames.HEAD.unpack_from(raw)[3]), frames.HEAD_BYTES
            while p < size - frames.TAIL_BYTES:
                ts, n_key, n_value, n_headers = frames.RECORD.unpack_from(raw, p)
                if ts >= timestamp:
                    return offset
                offset, p = offset + 1, p + frames.RECORD_BYTES + max(0, n_key) + max(0, n_value) + n_headers
        raise self.corrupt(partition, limit)

    def frames(self, partition: int, at: int, limit: int) -> Iterator[tuple[int, int]]:
        """(position, bytes) of the frames from `at`. Raises FormatError."""
        fd = self.fd(partition)
        while at < limit:
            raw = os.pread(fd, frames.HEAD_BYTES, at)
            magic, _, size = frames.HEAD.unpack(raw)[:3] if len(raw) == frames.HEAD_BYTES else (0, 0, 0)
            if magic != frames.MAGIC or size < frames.HEAD_BYTES + frames.TAIL_BYTES or at + size > limit:
                raise self.corrupt(partition, at)
            yield at, size
            at += size

    def check_frames(self, partition: int) -> int:
        """Cut the partition back to its last whole frame (by checksum); returns how many bytes went. After a power cut only:
        no other process may have the log open."""
        limit, good = self.committed(partition), 0
        try:
            for at, size in self.frames(partition, 0, limit):
                raw = os.pread(self.fd(partition), size, at)
                if len(raw) < size or zlib.crc32(memoryview(raw)[8:]) != frames.HEAD.unpack_from(raw)[1]:
                    break
                good = at + size
        except FormatError:
            pass  # the cut is at the last good frame
        if good < limit:
            self.head[partition] = good
            entries = [e for e in self.index(partition) if e[0] < good]
            os.ftruncate(self.fd(partition, "index"), len(entries) * INDEX.size)
        return limit - good

    def path(self, partition: int, kind: str = "log") -> Path:
        """The partition's file: `log` or `index`."""
        return self.directory / f"{partition}.{kind}"

    def fd(self, partition: int, kind: str = "log") -> int:
        """The open file."""
        name = f"{partition}.{kind}"
        if name not in self._fds:
            self._fds[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._fds[name]

    def corrupt(self, partition: int, at: int) -> FormatError:
        """The error for bytes that can't be what this product wrote."""
        return FormatError(
            f"{self.path(partition)} is corrupt at byte {at}: restore the file, or begin a new log directory"
        )

    def close(self) -> None:
        """Close the files; the mapping of `head` goes with the object."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def make_topic(topics: Path, info: TopicInfo) -> None:
    """Create a topic's folder whole, or leave the one that is there."""
    tmp = topics / f".new-{info.name}-{os.getpid()}-{os.urandom(4).hex()}"
    tmp.mkdir(parents=True)
    write_info(tmp, info)
    (tmp / "head").write_bytes(bytes(SLOT_BYTES * info.partitions))
    try:
        tmp.rename(topics / info.name)
    except OSError:  # it exists (not empty)
        for f in tmp.iterdir():
            f.unlink()
        tmp.rmdir()


def read_info(directory: Path) -> TopicInfo:
    """What topic.json says. Raises FormatError."""
    try:
        d = json.loads((directory / "topic.json").read_text())
        return TopicInfo(directory.name, int(d["partitions"]), {str(k): str(v) for k, v in d["config"].items()})
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise FormatError(f"{directory / 'topic.json'} can't be read: {e}") from None


def write_info(directory: Path, info: TopicInfo) -> None:
    """Replace topic.json."""
    write_json(directory / "topic.json", {"partitions": info.partitions, "config": dict(info.config)})


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Replace a small file: readers see the old one or the new one."""
    tmp = path.with_name(f".{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
    tmp.write_text(json.dumps(data))
    tmp.rename(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file."""
    with open(path, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
