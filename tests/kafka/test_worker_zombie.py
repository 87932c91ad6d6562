"""A worker that is paused past max.poll.interval.ms and its session, while another takes over, then goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_dmgin.state.ops.stores import Stores
from tests.chaos.campaign import PARTITIONS, Plan, _cli, _groups
from tests.chaos.checks import answered, check
from tests.chaos.fleet import Fleet, Member, environment
from tests.chaos.traffic import Traffic

pytestmark = pytest.mark.kafka


def until(what: Callable[[], bool], fleet: Fleet, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "\n".join(m.log.read_text()[-1500:] for m in fleet.members)
        time.sleep(0.02)


def offsets(data: Path) -> dict[int, dict[str, int]]:
    """What the stores of a directory have folded, as committed."""
    stores, out = Stores.of(data), {}
    for p in stores.present():
        engine = stores.open(p)
        out[p] = stores.offsets(engine)
        engine.close()
    return out


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("flags", "protocol"),
    [((), "classic"), (("--exactly-once",), "classic"), ((), "consumer")],
    ids=["at-least-once", "exactly-once", "kip-848"],
)
def test_a_zombie_writes_nothing_more(
    kafka: str, prefix: str, tmp_path: Path, flags: tuple[str, ...], protocol: str
) -> None:
    """Exactly once, it is paused while a transaction with answers is open: they are not in it that the other gives again."""
    own = ["--log", "kafka://" + kafka, "--prefix", prefix]
    plan = Plan(seed=1, seconds=0, directory=tmp_path, workers=2)
    env = environment(
        STREAM_DMGIN_WORKER_GROUP=prefix + "g", STREAM_DMGIN_WORKER_GROUP_PROTOCOL=protocol,
        # the session of the new protocol is the broker's, 6 s in these tests, too; librdkafka refuses a shorter poll interval there
        STREAM_DMGIN_KAFKA_MAX_POLL_INTERVAL_MS="10000" if protocol == "classic" else "45000",
        **({"STREAM_DMGIN_KAFKA_SESSION_TIMEOUT_MS": "6000"} if protocol == "classic" else {}),
        **({"STREAM_DMGIN_WORKER_TRANSACTION_MS": "3000", "STREAM_DMGIN_WORKER_COMMIT_INTERVAL_S": "30"} if flags else {}),
    )  # fmt: skip
    _cli(env, "topics", "apply", *own, "--data-dir", str(tmp_path), "--partitions", str(PARTITIONS))
    a, b = (
        Member(n, [*own, "--data-dir", str(tmp_path / n), *_groups(plan), *flags], tmp_path / f"{n}.log", env)
        for n in ("a", "b")
    )
    fleet = Fleet([a, b])
    traffic = Traffic(kafka, prefix, seed=1, rate=100)
    everything = set(range(PARTITIONS))
    try:
        a.start()
        traffic.start()
        until(lambda: a.holds() == everything and len(answered(kafka, prefix)) > 5, fleet)
        if not flags:  # past the first commits, which load their compiled code and would be caught in the middle
            until(lambda: all(any(o.values()) for o in offsets(tmp_path / "a").values()), fleet)
        a.send(signal.SIGSTOP)
        before = offsets(tmp_path / "a")
        asked = set(traffic.asked)
        b.start()
        until(lambda: b.holds() == everything and answered(kafka, prefix) >= asked, fleet)
        a.send(signal.SIGCONT)
        until(lambda: a.said("lost partitions"), fleet)
        a.send(signal.SIGSTOP)
        rejoined = bool(a.holds())  # a slow machine may be late here
        after = offsets(tmp_path / "a")
        # a commit that was under way when it was stopped goes on: one partition's at most
        assert rejoined or sum(after[p] != before[p] for p in before) <= 1
        a.send(signal.SIGCONT)
        assert not a.said("released partitions")
        until(lambda: bool(a.holds()), fleet)
        traffic.stop()
        until(lambda: answered(kafka, prefix) >= traffic.asked.keys(), fleet)
        assert fleet.stop() == [0, 0]
        for m in fleet.members:  # whatever was the other's
            _cli(env, "worker", *m.args, "--until-end")
        findings = check(SimpleNamespace(shared=False, args=flags), kafka, prefix, fleet, traffic)  # type: ignore[arg-type]
        assert findings.ok, findings
    finally:
        fleet.kill()
