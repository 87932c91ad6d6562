"""A fault campaign: a real broker, several workers, traffic, and a seeded order of accidents; then the checks."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_dmgin.log.broker import LocalKafka
from tests.chaos.checks import Findings, answered, check, told
from tests.chaos.fleet import CLI, ROOT, Fleet, Member, environment
from tests.chaos.slow_disk import SlowDisk
from tests.chaos.traffic import Traffic, groups

PARTITIONS = 6
SETTLE_S = 180.0  # for the last answers, once nothing fails any more
# weight of each accident
ACCIDENTS = {"kill": 60, "pause": 14, "leave": 12, "kill all": 2, "full disk": 3, "slow disk": 8, "no snapshots": 6}
NO_SNAPSHOTS_S = 5.0
FULL_S = 4.0
SLOW_S = 10.0


@dataclass
class Plan:
    """What to do. `shared`: all workers on one data directory, as on one machine; otherwise each has its own."""

    seed: int
    seconds: float
    directory: Path
    workers: int = 3
    shared: bool = False
    rate: int = 200
    every_s: tuple[float, float] = (0.5, 4.0)  # between two accidents
    broker_s: tuple[float, float] = (60.0, 180.0)  # between two restarts of the broker
    env: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    snapshots: bool = False  # workers take snapshots every few seconds, of a place that fails now and then
    small_disk: bool = (
        False  # data directories on a small file system that fills up now and then (needs the right to mount)
    )
    slow_disk: bool = (
        False  # data directories on a disk that is slow now and then (needs root: tests/chaos/slow_disk.py)
    )
    must_kill: int = 0  # go on until so many were killed, beyond `seconds` if need be


@dataclass
class Outcome:
    """What was done, and what was found."""

    done: Counter[str]
    findings: Findings
    unexpected: list[str]
    exit_codes: list[int]

    @property
    def ok(self) -> bool:
        return self.findings.ok and not any(self.exit_codes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok, "accidents": dict(self.done), **self.findings.as_dict(),
            "unexpected_exits": self.unexpected, "last_exit_codes": self.exit_codes,
        }  # fmt: skip


def run(plan: Plan, say: Any = lambda text: None) -> Outcome:
    """The whole campaign. Ends every process it started."""
    r = random.Random(plan.seed)
    plan.directory.mkdir(parents=True, exist_ok=True)
    done: Counter[str] = Counter()
    with LocalKafka(plan.directory / "kafka") as kafka, _small(plan), _slow(plan) as slow:
        port = int(kafka.bootstrap.rsplit(":", 1)[1])
        prefix = "chaos."
        own = ["--log", "kafka://" + kafka.bootstrap, "--prefix", prefix]
        fleet = _fleet(plan, own)
        env = fleet.members[0].env
        _cli(env, "topics", "apply", *own, "--data-dir", str(plan.directory), "--partitions", str(PARTITIONS))
        traffic = Traffic(kafka.bootstrap, prefix, plan.seed, plan.rate)
        try:
            for m in fleet.members:
                m.start()
            traffic.start()
            _accidents(plan, r, fleet, kafka, port, done, say, slow)
            say("no more accidents")
            if slow is not None:
                slow.throttle(0.0)
            traffic.stop()
            _settle(fleet, kafka.bootstrap, prefix, traffic, say)
            codes = fleet.stop()
            known, late = told(kafka.bootstrap, prefix, env.get("STREAM_DMGIN_WORKER_GROUP", "stream-dmgin")), 0
            for directory in sorted({Path(m.args[m.args.index("--data-dir") + 1]) for m in fleet.members}):
                # whatever was not folded by this one: each directory ends with the whole state
                rest = ["worker", *own, "--data-dir", str(directory), *_groups(plan), "--until-end", "-o", "json"]
                late += json.loads(_cli(env, *rest))["requests"]
            findings = check(plan, kafka.bootstrap, prefix, fleet, traffic)
            if late:
                findings.say(
                    f"requests of which a later owner didn't know that they were answered, told {known}", range(late)
                )
        finally:
            fleet.kill()
    return Outcome(done, findings, fleet.unexpected, codes)


@contextlib.contextmanager
def _small(plan: Plan) -> Iterator[None]:
    """The small file system, where the plan wants one."""
    if not plan.small_disk:
        yield
        return
    at = plan.directory / "small"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _slow(plan: Plan) -> contextlib.AbstractContextManager[SlowDisk | None]:
    """The disk that can be slow, where the plan wants one."""
    return SlowDisk(plan.directory / "slow") if plan.slow_disk else contextlib.nullcontext()


def _groups(plan: Plan) -> list[str]:
    path = plan.directory / "groups.csv"
    if not path.exists():
        path.write_text("item_id,group\n" + "".join(f"{i},{g}\n" for i, g in groups().items()))
    return ["--groups", str(path)]


def _fleet(plan: Plan, own: list[str]) -> Fleet:
    members = []
    for k in range(plan.workers):
        data = (
            plan.directory
            / ("small" if plan.small_disk else "slow" if plan.slow_disk else "")
            / ("data" if plan.shared else f"data{k}")
        )
        args = [*own, "--data-dir", str(data), *_groups(plan), *plan.args]
        env = environment(**{key: v.format(k=k) for key, v in plan.env.items()})
        if plan.snapshots:
            env |= {"STREAM_DMGIN_SNAPSHOT_TO": str(plan.directory / "snapshots"), "STREAM_DMGIN_SNAPSHOT_EVERY_S": "4"}
        if plan.small_disk:
            env |= {"STREAM_DMGIN_WORKER_DISK_FREE_MB": "40", "STREAM_DMGIN_WORKER_DISK_FREE_PERCENT": "1"}
        members.append(Member(f"w{k}", args, plan.directory / f"w{k}.log", env))
    return Fleet(members)


def _cli(env: dict[str, str], *args: str) -> str:
    p = subprocess.run([*CLI, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert p.returncode == 0, f"{args}: exit {p.returncode}: {p.stderr[-3000:]}"
    return p.stdout


def _accidents(
    plan: Plan,
    r: random.Random,
    fleet: Fleet,
    kafka: LocalKafka,
    port: int,
    done: Counter[str],
    say: Any,
    slow: SlowDisk | None,
) -> None:
    end = time.monotonic() + plan.seconds
    hard_end = end + max(plan.seconds, 120.0)
    kinds = {k: weight for k, weight in ACCIDENTS.items() if k != "slow disk" or slow is not None}
    following = time.monotonic() + 8.0  # the first ones come up
    broker_at = time.monotonic() + r.uniform(*plan.broker_s)
    while (now := time.monotonic()) < end or (done["kill"] < plan.must_kill and now < hard_end):
        fleet.tend(now)
        if slow is not None and slow.until and now >= slow.until:
            slow.throttle(0.0)
        if now >= broker_at:
            broker_at = now + r.uniform(*plan.broker_s)
            _accident("broker", r, fleet, kafka, port, now)
            done["broker"] += 1
            say(f"broker ({dict(done)})")
        if now >= following:
            what = r.choices(list(kinds), list(kinds.values()))[0]
            if what == "full disk" or what == "no snapshots":
                done[what] += _spoil(plan, what)
            elif what == "slow disk":
                if slow is not None and not slow.until:
                    slow.throttle(now + SLOW_S)  # the others go on meanwhile
                    done[what] += 1
            elif _accident(what, r, fleet, kafka, port, now):
                done[what] += 1
                say(f"{what} ({dict(done)})")
                following = time.monotonic() + r.uniform(*plan.every_s)
        time.sleep(0.05)


def _accident(what: str, r: random.Random, fleet: Fleet, kafka: LocalKafka, port: int, now: float) -> bool:
    """Do it; False when nobody is there to suffer it."""
    busy = [m for m in fleet.alive() if not m.paused_until and m.said("assigned partitions")]
    if what == "broker":
        kafka.stop()
        time.sleep(r.uniform(0, 2))
        kafka.__init__(kafka.directory, port)  # type: ignore[misc]
        kafka.start()
        return True
    victims = busy if what == "kill all" else [r.choice(busy)] if busy else []
    for m in victims:
        if what.startswith("kill"):
            m.send(signal.SIGKILL)
            m.start_at = now + r.uniform(0, 4)
        elif what == "pause":
            m.send(signal.SIGSTOP)
            m.paused_until = now + r.uniform(1, 12)
        else:
            m.send(signal.SIGTERM)
            m.start_at = now + r.uniform(2, 12)
    return bool(victims)


def _spoil(plan: Plan, what: str) -> bool:
    """Fill the small file system, or have the place of the snapshots be a file, for some seconds; False where there is none."""
    if what == "full disk" and plan.small_disk:
        filler = plan.directory / "small" / "filler"
        with contextlib.suppress(OSError), open(filler, "wb") as f:
            while True:
                f.write(bytes(1 << 20))
        time.sleep(FULL_S)
        filler.unlink()
        return True
    if what == "no snapshots" and plan.snapshots:
        place, away = plan.directory / "snapshots", plan.directory / "snapshots-away"
        if place.exists():
            place.rename(away)
        place.touch()
        time.sleep(NO_SNAPSHOTS_S)
        place.unlink()
        if away.exists():
            away.rename(place)
        return True
    return False


def _settle(fleet: Fleet, bootstrap: str, prefix: str, traffic: Traffic, say: Any) -> None:
    """Let the workers answer what is asked."""
    end = time.monotonic() + SETTLE_S
    for m in fleet.members:
        m.start_at = m.start_at or (0.0 if m.alive else time.monotonic())
    while time.monotonic() < end:
        fleet.tend(time.monotonic())
        left = len(traffic.asked.keys() - answered(bootstrap, prefix))
        awake = all(m.alive and not m.paused_until and m.said("counters of") for m in fleet.members)
        if awake and not left:
            return
        say(f"{left} requests to be answered")
        time.sleep(1.0)


def report(outcome: Outcome, **more: Any) -> str:
    """One JSON document."""
    return json.dumps({**outcome.as_dict(), **more}, default=str)
