"""What the fold is measured against: reading and decoding alone, and a plain Python dict fold that keeps nothing on disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from stream_dmgin import records, topics
from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log.base import open_log

Values = Iterator[list[tuple[int, bytes]]]  # batches of (topic number, value)
IDLE_S = 60.0


def consume(url: str, prefix: str) -> Values:
    """All event records from the first offset on, in batches, as a plain client reads them. Endless: the caller counts."""
    names = [prefix + t for t in topics.EVENTS]
    return _kafka(url.removeprefix("kafka://"), names) if url.startswith("kafka://") else _embedded(url, names)


def _kafka(bootstrap: str, names: list[str]) -> Values:
    from confluent_kafka import Consumer, TopicPartition

    c = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "stream-dmgin-bench",
            "enable.auto.commit": False,
            "queued.min.messages": 200_000,
            "fetch.message.max.bytes": 4 << 20,
            "fetch.queue.backoff.ms": 10,  # its default of a second stalls a fast consumer
        }
    )
    try:
        known = c.list_topics(timeout=20).topics
        c.assign([TopicPartition(t, p, 0) for t in names for p in known[t].partitions])
        number = {t: k for k, t in enumerate(names)}
        last = time.monotonic()
        while time.monotonic() - last < IDLE_S:
            if messages := c.consume(10_000, 1.0):
                last = time.monotonic()
                yield [(number[m.topic() or ""], m.value() or b"") for m in messages]
    finally:
        c.close()
    raise LogUnavailable(f"bench: nothing came from {bootstrap} for {IDLE_S:g} s")


def _embedded(url: str, names: list[str]) -> Values:
    with open_log(url) as log:
        reader = log.reader(names)
        try:
            reader.assign({(t, p): -2 for t in names for p in log.ends(t)})
            while (batch := reader.poll(10_000, IDLE_S)) is not None:
                found = batch.topic.tolist()
                values = [(found[i], batch.value(i) or b"") for i in range(len(batch))]
                batch.release()
                yield values
        finally:
            reader.close()
    raise LogUnavailable(f"bench: nothing came from {url} for {IDLE_S:g} s")


def decode_only(decode: Callable[[bytes], Any], batch: list[tuple[int, bytes]]) -> None:
    """Decode and drop."""
    for _, value in batch:
        decode(value)


class DictFold:
    """Per (user, group): counts by type, dwell sum and maximum, spend, first and last time, the newest 32 in order of arrival.

    No duplicates found, no order restored, nothing kept on disk: less than the product's fold does.
    """

    def __init__(self, groups: Mapping[str, int]) -> None:
        self._groups = groups
        self.state: dict[tuple[str, int | str], list[Any]] = {}

    def fold(self, decode: Callable[[bytes], Any], batch: list[tuple[int, bytes]]) -> None:
        """Fold one batch."""
        groups, state = self._groups, self.state
        for topic, value in batch:
            e = decode(value)
            kind = e.type or topic
            g = state.setdefault(
                (e.user_id, groups.get(e.item_id, e.item_id)), [{}, 0, 0, 0, e.ts, e.ts, deque(maxlen=32)]
            )
            counts = g[0]
            counts[kind] = counts.get(kind, 0) + 1
            dwell = e.dwell_ms or 0
            g[1] += dwell
            g[2] = max(g[2], dwell)
            g[3] += round((e.value or 0) * 1_000_000)
            g[4] = min(g[4], e.ts)
            g[5] = max(g[5], e.ts)
            if topic:
                g[6].append((e.item_id, kind, e.ts, dwell, e.value))


def rate(
    url: str, prefix: str, n: int, fold: Callable[[Callable[[bytes], Any], list[tuple[int, bytes]]], None]
) -> float:
    """Records per second over `n` records, from the arrival of the first batch on."""
    decode = msgspec.msgpack.Decoder(records.Event).decode
    seen, t0 = 0, 0.0
    for batch in consume(url, prefix):
        t0 = t0 or time.perf_counter()
        fold(decode, batch)
        seen += len(batch)
        if seen >= n:
            break
    return seen / (time.perf_counter() - t0)
