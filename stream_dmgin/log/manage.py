"""The topics of the contract on a log: create them, say what differs, bring the configuration in line. Control path."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stream_dmgin import topics
from stream_dmgin.errors import UsageError
from stream_dmgin.log.base import Log, TopicInfo

VALUE_MAX = 11 << 20  # values of 10 MB pass, with their key and headers
LETTER_MAX = 12 << 20  # a dead letter holds such a value, its headers and the reason


@dataclass(frozen=True)
class Difference:
    """One thing in which the log differs from the contract. `key`: missing, partitions, or the name of a configuration."""

    topic: str
    key: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        if self.key == "missing":
            return f"{self.topic} does not exist"
        return f"{self.topic}: {self.key} is {self.found}, {self.wanted} is wanted"


@dataclass
class Plan:
    """What `apply` does, or would do."""

    create: list[TopicInfo] = field(default_factory=list)
    change: list[Difference] = field(default_factory=list)
    same: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For -o json."""
        created = [{"topic": t.name, "partitions": t.partitions, "config": dict(t.config)} for t in self.create]
        return {"created": created, "changed": [asdict(d) for d in self.change], "unchanged": self.same}


def wanted(prefix: str, partitions: int, config: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, TopicInfo]:
    """The topics of the contract under their full names. `config`: changes by topic, named without its prefix."""
    extra = config or {}
    unknown = set(extra) - set(topics.ALL)
    if unknown:
        raise UsageError(f"no such topic: {', '.join(sorted(unknown))}; the contract has {', '.join(topics.ALL)}")
    out = {}
    for t in topics.ALL.values():
        limit = LETTER_MAX if t.name == topics.DEAD_LETTERS else VALUE_MAX
        base = {"cleanup.policy": t.cleanup, "retention.ms": str(t.retention_ms), "max.message.bytes": str(limit)}
        count = partitions if t.user_keyed else 1
        out[prefix + t.name] = TopicInfo(prefix + t.name, count, {**base, **extra.get(t.name, {})})
    return out


def plan(
    log: Log,
    prefix: str,
    partitions: int | None,
    default_partitions: int = 8,
    config: Mapping[str, Mapping[str, str]] | None = None,
) -> Plan:
    """What must be created and changed. User-keyed topics get `partitions`, else the number that those there have, else the
    default. Raises UsageError where the number of an existing topic would have to change: its records would be misplaced."""
    there = log.topics()
    numbers = _numbers(there, prefix)
    count = partitions or (max(set(numbers.values())) if numbers else default_partitions)
    wrong = [f"{t} has {n}" for t, n in numbers.items() if n != count]
    if wrong:
        raise UsageError(
            f"{count} partitions can't be had: {', '.join(wrong)}. The number can't change once there are records, since "
            "users would move: use another --prefix, or the number that is there"
        )
    out = Plan()
    for name, info in wanted(prefix, count, config).items():
        if name not in there:
            out.create.append(info)
            continue
        changes = _config_differences(there[name], info, (config or {}).get(name.removeprefix(prefix), {}))
        out.change += changes
        if not changes:
            out.same.append(name)
    return out


def apply(log: Log, what: Plan) -> None:
    """Do it."""
    log.create(what.create)
    changes: dict[str, dict[str, str]] = {}
    for d in what.change:
        changes.setdefault(d.topic, {})[d.key] = d.wanted
    for topic, config in changes.items():
        log.configure(topic, config)


def differences(log: Log, prefix: str, config: Mapping[str, Mapping[str, str]] | None = None) -> list[Difference]:
    """How the log differs from the contract: missing topics, unequal partition numbers, cleanup, retention, limits."""
    there = log.topics()
    numbers = _numbers(there, prefix)
    count = max(set(numbers.values()), key=list(numbers.values()).count, default=1)
    out = [Difference(t, "partitions", str(n), str(count)) for t, n in numbers.items() if n != count]
    for name, info in wanted(prefix, count, config).items():
        if name not in there:
            out.append(Difference(name, "missing", None, f"{info.partitions} partitions"))
        else:
            out += _config_differences(there[name], info, (config or {}).get(name.removeprefix(prefix), {}))
    return out


def describe(log: Log, prefix: str) -> list[dict[str, Any]]:
    """One row a topic under `prefix`: partitions, records kept (offsets, compaction not seen), ends, configuration."""
    rows = []
    for name, info in log.topics().items():
        if name.startswith(prefix):
            begins, ends = log.begins(name), log.ends(name)
            rows.append({
                "topic": name, "partitions": info.partitions, "records": sum(ends.values()) - sum(begins.values()),
                "begins": [begins[p] for p in sorted(begins)], "ends": [ends[p] for p in sorted(ends)],
                "config": dict(info.config),
            })  # fmt: skip
    return rows


def _numbers(there: Mapping[str, TopicInfo], prefix: str) -> dict[str, int]:
    return {prefix + t: there[prefix + t].partitions for t in topics.USER_KEYED if prefix + t in there}


def keep_dated(log: Log, names: Iterable[str], oldest: int) -> list[str]:
    """Keep these topics for ever where retention, which acts on record timestamps, would take records as old as `oldest` (ms)
    away at once. Returns which topics were changed."""
    there, changed = log.topics(), []
    for name in names:
        keeps = int(there[name].config.get("retention.ms", "-1")) if name in there else -1
        if keeps >= 0 and oldest < time.time() * 1000 - keeps:
            log.configure(name, {"retention.ms": "-1"})
            changed.append(name)
    return changed


def _config_differences(found: TopicInfo, info: TopicInfo, explicit: Mapping[str, str]) -> list[Difference]:
    """`explicit`: what was asked for in so many words, and is to be exactly so. Otherwise keeping more is no difference."""
    pairs = ((k, found.config.get(k), v) for k, v in info.config.items())
    return [
        Difference(info.name, k, f, v) for k, f, v in pairs if f != v and (k in explicit or not _keeps_more(k, f, v))
    ]


def _keeps_more(key: str, found: str | None, wanted: str) -> bool:
    if found is None or key not in ("retention.ms", "max.message.bytes"):
        return False
    return int(found) < 0 or (int(wanted) >= 0 and int(found) >= int(wanted))
