"""Reading a stretch of a log, from offset to offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log.base import TP, Log, TopicInfo, open_log
from stream_dmgin.log.scan import scan


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with open_log(f"file:{tmp_path / 'log'}") as log:
        log.create([TopicInfo("a", 3), TopicInfo("b", 3)])
        w = log.writer()
        for k in range(300):
            w.append("ab"[k % 2], b"k", b"%d" % k, partition=k % 3)
        w.flush()
        w.close()
        yield log


def read(log: Log, ranges: dict[TP, tuple[int, int]], **kw: int) -> dict[TP, list[int]]:
    out: dict[TP, list[int]] = {}
    for batch, inside in scan(log, ranges, **kw):
        for i in range(len(batch)):
            if inside[i]:
                out.setdefault((batch.topics[batch.topic[i]], int(batch.partition[i])), []).append(int(batch.offset[i]))
    return out


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_exactly_the_range_in_order(log: Log, size: int) -> None:
    ranges = {("a", 0): (0, 50), ("a", 2): (10, 11), ("b", 1): (3, 40), ("b", 2): (5, 5)}
    assert read(log, ranges, max_records=size) == {tp: list(range(*r)) for tp, r in ranges.items() if r[0] < r[1]}


def test_nothing_to_read_asks_nobody(log: Log) -> None:
    assert read(log, {("a", 0): (50, 50), ("no such topic", 0): (0, 0)}) == {}
    assert read(log, {}) == {}


def test_records_that_never_come(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range beyond the end: not silence for ever."""
    monkeypatch.setattr("stream_dmgin.log.scan.SILENCE_S", 0.2)
    monkeypatch.setattr("stream_dmgin.log.scan.POLL_S", 0.05)
    got = []
    with pytest.raises(LogUnavailable, match="a/0 up to offset 60"):
        for batch, inside in scan(log, {("a", 0): (40, 60)}, patience_s=0.5):
            got += batch.offset[inside].tolist()
    assert got == list(range(40, 50))
