"""What the campaign writes: events in and out of order, with clocks that jump, written once or several times; malformed
records; requests. Made from a seed, sent with a plain client, remembered for the checks."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack
from confluent_kafka import KafkaError, Message, Producer

from stream_dmgin.topics import EVENTS

USERS, ITEMS, GROUPS = 40, 90, 11
HOUR = 3_600_000
YEAR_2001 = 980_000_000_000
TWICE = 28  # events of a user whose events are written several times: fewer than any ring, so that each counts once
STEP_S = 0.1


def groups() -> dict[str, int]:
    """Item -> group; some items have none."""
    return {f"i{k}": k % GROUPS for k in range(ITEMS - 12)}


@dataclass
class Sent:
    """One record, and where it landed."""

    topic: str
    key: bytes | None
    value: bytes
    event: dict[str, Any] | None = None  # None: malformed, or a request
    partition: int = -1
    offset: int = -1


@dataclass
class Traffic:
    """A thread that writes `rate` events a second until it is stopped."""

    bootstrap: str
    prefix: str
    seed: int
    rate: int = 200
    sent: list[Sent] = field(default_factory=list)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # request id -> request
    malformed: list[Sent] = field(default_factory=list)
    failure: str = ""

    def __post_init__(self) -> None:
        self._r = random.Random(self.seed)
        self._stop = threading.Event()
        self._n = 0
        self._producer = Producer({
            "bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True,
            "linger.ms": 5, "message.timeout.ms": 300_000, "reconnect.backoff.max.ms": 500, "log_level": 0,
        })  # fmt: skip
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends when everything is durable."""
        self._stop.set()
        self._thread.join(60)
        left = self._producer.flush(120)
        assert not left and not self.failure, f"the campaign's own records were not written: {left} {self.failure}"

    def _run(self) -> None:
        while not self._stop.wait(STEP_S):
            for _ in range(max(1, round(self.rate * STEP_S))):
                self._event()
            if self._r.random() < 0.6:
                self._request()
            if self._r.random() < 0.3:
                self._malformed()
            self._producer.poll(0)

    def _event(self) -> None:
        r, self._n = self._r, self._n + 1
        topic = r.choices(EVENTS, (5, 3, 2))[0]
        several = r.random() < 0.05
        user = f"d{self._n // 2000}-{r.randrange(4)}" if several else f"u{int(r.paretovariate(1)) % USERS}"
        event: dict[str, Any] = {"user_id": user, "item_id": f"i{r.randrange(ITEMS)}", "ts": self._ts()}
        if r.random() < 0.8 or several:
            event["event_id"] = f"e{self._n}"
        if topic != "impressions":
            event["dwell_ms"] = r.randrange(90_000)
        if topic == "post-clicks":
            event |= {"type": r.choice(["order", "cart", "négatif", "dwell"]), "value": round(r.random() * 50, 2)}
        if several and sum(1 for s in self.sent[-4000:] if s.event and s.event["user_id"] == user) >= TWICE:
            return
        for _ in range(r.randrange(1, 4) if several else 1):
            self._send(Sent(topic, user.encode(), msgpack.packb(event), event))

    def _ts(self) -> int:
        now, x = int(time.time() * 1000), self._r.random()
        if x < 0.9:
            return now - self._r.randrange(5_000)
        if x < 0.95:
            return now - self._r.randrange(240 * HOUR)  # late
        if x < 0.98:
            return now + self._r.randrange(20 * HOUR)  # a clock that runs ahead
        return YEAR_2001 + self._r.randrange(HOUR)  # one that has lost its battery

    def _request(self) -> None:
        r, n = self._r, len(self.asked)
        user = f"u{r.randrange(USERS + 5)}"
        q = {
            "request_id": f"q{n}", "user_id": user, "ts": int(time.time() * 1000),
            "candidates": [f"i{r.randrange(ITEMS + 5)}" for _ in range(r.randrange(1, 20))],
        }  # fmt: skip
        self.asked[q["request_id"]] = q
        self._send(Sent("requests", user.encode(), msgpack.packb(q)))

    def _malformed(self) -> None:
        r, self._n = self._r, self._n + 1
        good = {"user_id": "u1", "item_id": f"bad{self._n}", "ts": int(time.time() * 1000)}
        kinds: list[tuple[bytes | None, Any]] = [
            (b"u1", b"\xc1 %d" % self._n),
            (b"u1", msgpack.packb([self._n])),
            (b"u1", msgpack.packb({**good, "ts": -self._n})),
            (b"u1", msgpack.packb({**good, "ts": good["ts"] + 30 * HOUR})),
            (b"u2", msgpack.packb(good)),  # another key than its user
            (b"u1", msgpack.packb({**good, "item_id": self._n})),
            (None, msgpack.packb({**good, "dwell_ms": -1})),
            (b"u1", msgpack.packb(good)[:-1]),
        ]
        key, value = r.choice(kinds)
        bad = Sent(r.choice([*EVENTS, "requests"]), key, value)
        self.malformed.append(bad)
        self._send(bad, remember=False)

    def _send(self, s: Sent, remember: bool = True) -> None:
        def landed(error: KafkaError | None, m: Message) -> None:
            if error is not None:
                self.failure = str(error)
            s.partition, s.offset = int(m.partition() or 0), int(m.offset() or 0)

        if remember:
            self.sent.append(s)
        while True:
            try:
                self._producer.produce(self.prefix + s.topic, s.value, s.key, on_delivery=landed)
                return
            except BufferError:
                self._producer.poll(0.1)
