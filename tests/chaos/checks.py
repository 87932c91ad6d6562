"""What must hold after a campaign, by plain clients and the oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.log.base import open_log
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from tests.chaos.fleet import Fleet
from tests.chaos.traffic import Traffic, groups
from tests.oracle import Oracle, hash64

if TYPE_CHECKING:
    from tests.chaos.campaign import Plan

SHOWN = 5


@dataclass
class Findings:
    """Figures, and what is wrong (nothing, if all is well)."""

    events: int = 0
    requests: int = 0
    scores: int = 0
    repeated_answers: int = 0  # attempts beyond the first of a request
    malformed: int = 0
    repeated_dead_letters: int = 0
    users: int = 0
    stores: int = 0
    counter_ranges: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def say(self, what: str, things: Any) -> None:
        """Note a failure, with a few of the things that show it."""
        things = list(things)
        if things:
            self.wrong.append(f"{what}: {len(things)}, e.g. {things[:SHOWN]}")


def read_all(bootstrap: str, topic: str, committed: bool = False) -> list[Message]:
    """All records of a topic up to the end it has now."""
    c = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "check", "enable.auto.commit": False, "enable.partition.eof": True,
        "isolation.level": "read_committed" if committed else "read_uncommitted", "log_level": 0,
    })  # fmt: skip
    partitions = c.list_topics(topic, timeout=60).topics[topic].partitions
    c.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    out, open_ = [], set(partitions)
    while open_:
        m = c.poll(60)
        assert m is not None, f"{topic}: no end in 60 s"
        if m.error():
            open_.discard(m.partition())
        else:
            out.append(m)
    c.close()
    return out


def answered(bootstrap: str, prefix: str) -> set[str]:
    """Request ids that have an answer (committed, where answers come in transactions)."""
    found = (msgpack.unpackb(m.value()) for m in read_all(bootstrap, prefix + "scores", committed=True))
    return {s["request_id"] for s in found}


def told(bootstrap: str, prefix: str, group: str) -> dict[str, list[int]]:
    """What the workers' group knows of requests and clicks, by partition (-1001: nothing)."""
    c = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    out = {}
    for topic in ("requests", "clicks"):
        partitions = c.list_topics(prefix + topic, timeout=60).topics[prefix + topic].partitions
        asked = [TopicPartition(prefix + topic, p) for p in sorted(partitions)]
        out[topic] = [tp.offset for tp in c.committed(asked, timeout=60)]
    c.close()
    return out


def check(plan: Plan, bootstrap: str, prefix: str, fleet: Fleet, traffic: Traffic) -> Findings:
    """Everything."""
    f = Findings(events=sum(s.event is not None for s in traffic.sent), requests=len(traffic.asked))
    exactly_once = "--exactly-once" in plan.args
    _scores(f, bootstrap, prefix, traffic, exactly_once)
    _dead_letters(f, bootstrap, prefix, traffic, exactly_once)
    counted = _fold(traffic)
    for m in fleet.members[: 1 if plan.shared else None]:
        _state(f, m.name, Path(m.args[m.args.index("--data-dir") + 1]), bootstrap, counted)
    _counters(f, bootstrap, prefix, counted)
    return f


def _scores(f: Findings, bootstrap: str, prefix: str, traffic: Traffic, exactly_once: bool) -> None:
    by: dict[str, list[dict[str, Any]]] = {}
    backwards, last = [], {}
    messages = sorted(
        read_all(bootstrap, prefix + "scores", committed=exactly_once), key=lambda m: (m.partition(), m.offset())
    )
    for m in messages:
        s = msgpack.unpackb(m.value())
        p = m.partition()
        if s["request_id"] not in by:  # a repeated attempt may arrive late
            at = s["provenance"]["offsets"]
            if any(at[t] < last.get((p, t), 0) for t in at):
                backwards.append(s["request_id"])
            last |= {(p, t): o for t, o in at.items()}
        by.setdefault(s["request_id"], []).append(s)
    f.scores, f.repeated_answers = len(messages), len(messages) - len(by)
    f.say("unanswered", traffic.asked.keys() - by.keys())
    f.say("answers nobody asked for", by.keys() - traffic.asked.keys())
    f.say("answered from an older state than the answers before", backwards)
    said = [q for q, ss in by.items() if len({_content(s) for s in ss}) != len({_provenance(s) for s in ss})]
    f.say("one provenance, several answers", said)
    f.say("another request's answer", [
        q for q, ss in by.items() for s in ss
        if q in traffic.asked and any(s[k] != traffic.asked[q][k] for k in ("user_id", "ts", "candidates"))
    ])  # fmt: skip
    if exactly_once:
        f.say("answered several times", [q for q, ss in by.items() if len(ss) > 1])


def _provenance(s: dict[str, Any]) -> str:
    return repr(sorted(s["provenance"]["offsets"].items())) + repr(
        (s["provenance"]["counters"], s["model"], s["status"])
    )


def _content(s: dict[str, Any]) -> str:
    return _provenance(s) + repr([s[k] for k in ("user_id", "ts", "candidates", "ctr", "heads", "groups", "reason")])


def _dead_letters(f: Findings, bootstrap: str, prefix: str, traffic: Traffic, exactly_once: bool) -> None:
    want = {(prefix + s.topic, s.partition, s.offset): s for s in traffic.malformed}
    got: Counter[tuple[str, int, int]] = Counter()
    altered = []
    for m in read_all(bootstrap, prefix + "dead-letters", committed=exactly_once):
        h = {k.rsplit(".", 1)[1]: v.decode() for k, v in m.headers() or [] if k.startswith("__streams.errors.")}
        place = h["topic"], int(h["partition"]), int(h["offset"])
        got[place] += 1
        if place in want and (want[place].value, want[place].key) != (m.value(), m.key()):
            altered.append(place)
    f.malformed, f.repeated_dead_letters = len(want), sum(got.values()) - len(got)
    f.say("malformed records that are no dead letters", want.keys() - got.keys())
    f.say("dead letters of good records", got.keys() - want.keys())
    f.say("dead letters that were altered", altered)
    if exactly_once:
        f.say("dead letters written twice", [p for p, n in got.items() if n > 1])


def _fold(traffic: Traffic) -> Oracle:
    """The oracle's state of everything that was sent. Only some users' events are written twice; asking for the others too
    would take hours."""
    plain, twice = Oracle(groups(), duplicates=False), Oracle(groups())
    for s in traffic.sent:
        if s.event is not None:
            of = twice if s.event["user_id"].startswith("d") else plain
            of.fold(s.topic, s.partition, s.offset, s.event)
    plain.users |= twice.users
    return plain


def _state(f: Findings, name: str, data: Path, bootstrap: str, want: Oracle) -> None:
    stores = Stores.of(data)
    differ, users = [], set()
    for p in stores.present():
        engine = stores.open(p)
        for user in engine.users():
            users.add(user)
            if engine.show(user) != _shown(want.show(user), engine.show(user)):
                differ.append(user)
        engine.close()
        f.stores += 1
    f.users = len(users)
    f.say(f"{name}: users whose state is not the oracle's", differ)
    f.say(f"{name}: users that are missing", want.users.keys() - users)
    with open_log("kafka://" + bootstrap) as log:
        again = verify(stores, log, everyone=True)
    f.say(f"{name}: users whose bytes are not those of the log folded again", again.differences)


def _shown(want: dict[str, Any] | None, got: dict[str, Any] | None) -> dict[str, Any] | None:
    """The oracle's document, with what the engine shows beyond the contract."""
    if want is None or got is None:
        return want
    out = {**got, **{k: want[k] for k in ("events", "impressions")}}
    out["groups"] = [
        {**g, **w, "recent": [{**b, **a} for a, b in zip(w["recent"], g["recent"], strict=False)]}
        for w, g in zip(want["groups"], got["groups"], strict=False)
    ]
    if len(want["groups"]) != len(got["groups"]):
        return want
    if any(len(w["recent"]) != len(g["recent"]) for w, g in zip(want["groups"], got["groups"], strict=True)):
        return want
    return out


def _counters(f: Findings, bootstrap: str, prefix: str, want: Oracle) -> None:
    """The counters of all users: every counted event once, whoever published it."""
    c = SharedCounters()
    for m in read_all(bootstrap, prefix + "counters"):
        c.fold(m.value(), m.offset())
    f.counter_ranges = {n: getattr(c.chains, n) for n in ("ranges", "duplicates", "gaps", "overlaps")}
    shown, clicked = Counter[str](), Counter[str]()
    for u in want.users.values():
        shown.update(e.item_id for e in u.impressions)
        clicked.update(e.item_id for e in u.events if e.type == "click")
    wrong = []
    for item in shown.keys() | clicked.keys():
        got = c.table.totals("item", hash64(item))
        if (got["impressions"], got["clicks"]) != (shown[item], clicked[item]):
            wrong.append((item, got["impressions"] - shown[item], got["clicks"] - clicked[item]))
    f.say("items whose counters differ", wrong)
    f.say("ranges of counters missing or twice", ["gap"] * c.chains.gaps + ["overlap"] * c.chains.overlaps)
