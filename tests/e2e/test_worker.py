"""The worker as a process, on the embedded log and on real Kafka: state is the oracle's fold, every request is answered,
nothing malformed is lost, also through SIGKILLs."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest

from stream_dmgin import topics
from stream_dmgin.log.base import TopicInfo, open_log
from stream_dmgin.state.ops.inspect import show_user
from stream_dmgin.state.ops.stores import Stores

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]
T0 = 1_760_000_000_000
PARTITIONS = 4


def _oracle():
    spec = importlib.util.spec_from_file_location("state_oracle", HERE.parent / "oracle.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["state_oracle"] = module
    spec.loader.exec_module(module)
    return module


oracle = _oracle()


@pytest.fixture(params=["file", "kafka"])
def log_args(request, tmp_path, prefix):
    url = f"file:{tmp_path / 'log'}" if request.param == "file" else f"kafka://{request.getfixturevalue('kafka')}"
    args = ["--log", url, "--prefix", prefix, "--data-dir", str(tmp_path / "data")]
    # The requests here are dated: retention would remove them.
    run("topics", "apply", *args, "--partitions", str(PARTITIONS), "--config", "requests:retention.ms=-1")
    return url, prefix, args, tmp_path


def run(*args, ok=(0,)):
    p = subprocess.run([*CLI, *args], capture_output=True, text=True, timeout=110, check=False)
    assert p.returncode in ok, f"{args}: exit {p.returncode}: {p.stderr[-2000:]}"
    return p


def js(*args, ok=(0,)):
    return json.loads(run(*args, "-o", "json", ok=ok).stdout)


def traffic(seed, n, users=12, items=60):
    r = random.Random(seed)
    out = []
    for k in range(n):
        topic = r.choices(topics.EVENTS, (5, 3, 2))[0]
        e = {
            "user_id": f"u{r.randrange(users)}",
            "item_id": f"i{r.randrange(items)}",
            "ts": T0 + 1000 * k - r.randrange(60_000),
            "event_id": f"e{k}",
        }
        if topic != "impressions":
            e["dwell_ms"] = r.randrange(90_000)
        if topic == "post-clicks":
            e["type"] = r.choice(["order", "cart", "négatif", "dwell"])
            e["value"] = round(r.random() * 50, 2)
        out.append((topic, e))
        if k % 97 == 0:
            out.append((topic, e))  # a duplicate
    return out


BAD = [
    b"\xc1",
    b"",
    msgpack.packb([1]),
    msgpack.packb({"user_id": "u1", "item_id": "i1"}),
    msgpack.packb({"user_id": "u1", "item_id": "i1", "ts": -5}),
]


def write_groups(path, items=60, groups=9):
    path.write_text("item_id,group\n" + "".join(f"i{k},{k % groups}\n" for k in range(items - 5)))
    return {f"i{k}": k % groups for k in range(items - 5)}


def send(url, prefix, records):
    """records: (topic, key, value)."""
    with open_log(url) as log:
        w = log.writer()
        for topic, key, value in records:
            w.append(prefix + topic, key, value, timestamp=T0 + 10**9)
        w.close()


def event_records(events):
    return [(t, e["user_id"].encode(), msgpack.packb(e)) for t, e in events]


def request(k, user, candidates, **more):
    return (
        "requests",
        user.encode(),
        msgpack.packb({"request_id": f"r{k}", "user_id": user, "ts": T0 + 10**9, "candidates": candidates, **more}),
    )


def check_state(args, events, groups):
    want = oracle.Oracle(groups)
    for offset, (t, e) in enumerate(events):
        want.fold(t, 0, offset, e)
    stores = Stores.of(Path(args[args.index("--data-dir") + 1]))
    for n, user in enumerate(want.users):
        # the command for one of them, in this process for the others: a start-up a user takes its time
        got = js("state", "show", user, *args) if n == 0 else show_user(stores, user)
        assert set(got.pop("offsets")) and 0 <= got.pop("partition") < PARTITIONS
        assert got.pop("n_groups") == len(got["groups"])
        for g in got["groups"]:  # what the tool shows beyond the contract
            g["recent"] = [{k: r[k] for k in ("item_id", "type", "ts")} for r in g["recent"]]
        assert got == want.show(user)


def values(url, prefix, topic):
    name = prefix + topic
    with open_log(url) as log:
        ends = log.ends(name)
        reader = log.reader([name])
        reader.assign({(name, p): -2 for p in ends})
        out, deadline = [], time.monotonic() + 60
        while len(out) < sum(ends.values()):
            batch = reader.poll(1000, 5)
            if batch is None:
                if time.monotonic() > deadline:  # a busy broker may take longer than one poll
                    break
                continue
            out += [batch.record(i) for i in range(len(batch))]
            batch.release()
        reader.close()
        return out


def test_until_end_folds_answers_and_diverts(log_args):
    url, prefix, args, tmp = log_args
    groups = write_groups(tmp / "g.csv")
    events = traffic(1, 1500)
    requests = [request(k, f"u{k % 15}", [f"i{(k * 7 + j) % 70}" for j in range(1 + k % 40)]) for k in range(60)]
    expired = request("late", "u1", ["i1", "i2"], expires_at=T0)
    too_many = request("many", "u1", [f"i{j}" for j in range(5000)])
    odd_context = request("odd", "u2", ["i1"], context={"lat": "north", "lon": None, "surface": 7})
    bad = [("clicks", b"u1", v) for v in BAD]
    send(
        url,
        prefix,
        [*event_records(events), *bad, *requests, expired, too_many, odd_context, ("requests", b"u1", b"\xc1")],
    )
    done = js("worker", *args, "--groups", str(tmp / "g.csv"), "--until-end", "--http", "off")
    assert done["events"] == len(events) + len(bad)
    assert (done["requests"], done["scores"], done["dead_letters"]) == (64, 63, len(bad) + 2)
    check_state(args, events, groups)
    scores = {s["request_id"]: s for s in (msgpack.unpackb(r.value) for r in values(url, prefix, "scores"))}
    assert len(scores) == 63
    assert scores["rlate"]["status"] == "expired"
    assert scores["rmany"]["status"] == "rejected"
    assert "candidates" in scores["rmany"]["reason"]
    for k in range(60):
        s = scores[f"r{k}"]
        assert s["status"] == "ok"
        assert len(s["ctr"]) == len(s["candidates"]) == 1 + k % 40
        assert all(0 < c < 1 for c in s["ctr"])
        assert set(s["provenance"]["offsets"]) == {prefix + t for t in topics.EVENTS}
        assert s["provenance"]["counters"] == {prefix + "counters": s["provenance"]["counters"][prefix + "counters"]}
    dead = values(url, prefix, "dead-letters")
    assert sorted(r.value or b"" for r in dead) == sorted([*BAD, too_many[2], b"\xc1"])
    assert all("__streams.errors.offset" in dict(r.headers) for r in dead)
    assert js("state", "verify", *args)["differing"] == 0
    # Nothing is left: a second run answers and folds nothing
    again = js("worker", *args, "--until-end", "--http", "off")
    assert (again["events"], again["requests"]) == (0, 0)


@pytest.mark.timeout(300)  # three killed members, each leaves its group when its session ends
def test_state_equals_the_fold_through_sigkills(log_args):
    url, prefix, args, tmp = log_args
    groups = write_groups(tmp / "g.csv")
    r = random.Random(3)
    events = traffic(2, 4000)
    asked = []
    n = len(events) // 4
    port = str(r.randrange(20_000, 30_000))
    worker = None
    try:
        for part in range(4):
            worker = subprocess.Popen(
                [*CLI, "worker", *args, "--groups", str(tmp / "g.csv"), "--http", f"127.0.0.1:{port}"],
                start_new_session=True,
            )
            chunk = events[part * n : (part + 1) * n] if part < 3 else events[part * n :]
            for a in range(0, len(chunk), 200):
                requests = [request(f"{part}-{a}", f"u{r.randrange(12)}", ["i1", "i2", "new"])]
                asked += [f"r{part}-{a}"]
                send(
                    url,
                    prefix,
                    [*event_records(chunk[a : a + 200]), *requests, ("clicks", b"u1", b"\xc1%d" % (part * 10000 + a))],
                )
                time.sleep(r.random() * 0.3)
            if part < 3:
                worker.kill()
                worker.wait()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            got = {msgpack.unpackb(x.value)["request_id"] for x in values(url, prefix, "scores")}
            if got >= set(asked):
                break
            time.sleep(0.5)
        assert got == set(asked)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        if worker is not None and worker.poll() is None:
            worker.kill()
    js("worker", *args, "--until-end", "--http", "off")  # whatever was still to be folded when it was told to stop
    check_state(args, events, groups)
    dead = {x.value for x in values(url, prefix, "dead-letters")}
    assert len(dead) == len(asked)
    assert js("state", "verify", *args)["differing"] == 0


def test_an_unreachable_broker_is_exit_3_with_a_word(tmp_path):
    p = run("worker", "--log", "kafka://127.0.0.1:1", "--data-dir", str(tmp_path), ok=(3,))
    assert "127.0.0.1:1" in p.stderr
    assert "Traceback" not in p.stderr


def test_missing_topics_are_named_with_the_command_that_makes_them(tmp_path):
    with open_log(f"file:{tmp_path / 'log'}") as log:
        log.create([TopicInfo("dmgin.clicks", 2)])
    p = run("worker", "--log", f"file:{tmp_path / 'log'}", "--data-dir", str(tmp_path), "--until-end", ok=(1,))
    assert "dmgin.impressions" in p.stderr
    assert "topics apply" in p.stderr
