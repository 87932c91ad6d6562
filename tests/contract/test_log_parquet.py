"""Parquet to topics and back, and the command line around it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin import records, topics
from stream_dmgin.cli.main import main
from stream_dmgin.datasets import form
from stream_dmgin.errors import UsageError
from stream_dmgin.log import manage
from stream_dmgin.log.base import Log, Record, TopicInfo, open_log
from stream_dmgin.log.parquet_export import export_topic
from stream_dmgin.log.parquet_import import Days, Selection, import_dataset, total

DAY = form.DAY_MS
ZERO = 1_700_000_000_000


def dataset() -> form.Dataset:
    """Three days: per day an impression, a click (visible 1 s later) and two requests, one of them as the click is seen."""
    events: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for day in range(-1, 3):
        t = ZERO + day * DAY
        user = f"u{day % 2}"
        events.append(
            {
                "topic": "impressions",
                "user_id": user,
                "item_id": "a",
                "ts": t,
                "visible_at": t,
                "event_id": f"i{day}",
                "position": 3,
            }
        )
        events.append(
            {
                "topic": "post-clicks",
                "user_id": user,
                "item_id": "a",
                "ts": t,
                "visible_at": t + 1000,
                "type": "order",
                "value": 9.5,
                "dwell_ms": 7,
            }
        )
        for at, items in ((t + 1000, ["b", "c"]), (t + 2000, ["a"])):
            for item in items:
                rows.append(
                    {
                        "request_id": f"r{at}",
                        "user_id": user,
                        "item_id": item,
                        "ts": at,
                        "label": 0,
                        "surface": "feed",
                        "page": "shop" if at == t + 1000 else None,
                        "lat": 1.5,
                    }
                )
    items = [
        {"item_id": "a", "name": "A", "embedding": [1.0, 2.0], "attrs": '{"colour": "red"}', "price": 2.0},
        {"item_id": "b"},
    ]

    def columns(schema: Any, dicts: list[dict[str, Any]]) -> pa.Table:
        return form.table(schema, {k: [d.get(k) for d in dicts] for k in schema})

    return form.Dataset(
        columns(form.EVENTS, events), columns(form.ROWS, rows), columns(form.ITEMS, items), form.Meta("small", ZERO)
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = open_log(f"file:{tmp_path / 'log'}")
    manage.apply(log, manage.plan(log, "p.", 4))
    return log


def everything(log: Log) -> dict[str, list[Record]]:
    names = list(log.topics())
    ends = {(t, p): e for t in names for p, e in log.ends(t).items()}
    reader, out = log.reader(names), {t.removeprefix("p."): list[Record]() for t in names}
    reader.assign(dict.fromkeys(ends, 0))
    while sum(map(len, out.values())) < sum(ends.values()):
        batch = reader.poll(1000, 1.0)
        assert batch is not None
        for i in range(len(batch)):
            r = batch.record(i)
            out[r.topic.removeprefix("p.")].append(r)
        batch.release()
    return out


def test_what_is_written_is_what_the_records_say(log: Log) -> None:
    counts = import_dataset(log, dataset(), "p.")
    assert counts == {"items": 2, "impressions": 4, "post-clicks": 4, "requests": 8}
    found = everything(log)
    order = sorted(found["post-clicks"], key=lambda r: r.timestamp)[1]
    e = records.decode_event("post-clicks", order.key, order.value, order.timestamp)
    assert (e.user_id, e.item_id, e.ts, e.type, e.value, e.dwell_ms) == ("u0", "a", ZERO, "order", 9.5, 7)
    assert order.timestamp == ZERO + 1000  # visible
    request = sorted(found["requests"], key=lambda r: r.timestamp)[2]
    r = records.decode_request(request.key, request.value, request.timestamp)
    assert (r.request_id, r.ts, r.candidates, r.context) == (
        f"r{ZERO + 1000}",
        ZERO + 1000,
        ["b", "c"],
        {"surface": "feed", "page": "shop", "lat": 1.5},
    )
    assert (
        request.timestamp == r.ts
        and request.partition == {r.partition for r in found["post-clicks"] if r.key == b"u0"}.pop()
    )
    item = records.decode_item(found["items"][0].key, found["items"][0].value)
    assert item == records.Item("a", name="A", price=2.0, embedding=[1.0, 2.0], attrs={"colour": "red"})


def test_dated_records_are_not_left_to_retention(log: Log) -> None:
    data = dataset()
    import_dataset(log, data, "p.", Selection(requests=False))
    assert log.topics()["p.requests"].config["retention.ms"] == "604800000"
    import_dataset(log, data, "p.")
    assert log.topics()["p.requests"].config["retention.ms"] == "-1"
    assert manage.differences(log, "p.") == [] and not manage.plan(log, "p.", None).change
    asked = {"requests": {"retention.ms": "604800000"}}
    assert [d.key for d in manage.plan(log, "p.", None, config=asked).change] == ["retention.ms"]  # said so: done
    log.configure("p.requests", {"retention.ms": "604800000"})
    assert manage.keep_dated(log, ["p.requests"], int(time.time() * 1000) - 1000) == []


def test_days_kinds_and_limit(log: Log) -> None:
    data = dataset()
    what = Selection(items=False, event_days=Days(None, 1), request_days=Days(1, 1))
    assert import_dataset(log, data, "p.", what) == {"impressions": 3, "post-clicks": 3, "requests": 2}
    assert {r.timestamp for r in everything(log)["requests"]} == {ZERO + DAY + 1000, ZERO + DAY + 2000}
    assert import_dataset(log, data, "p.", Selection(items=False, limit=5)) == {
        "impressions": 2,
        "post-clicks": 1,
        "requests": 2,
    }
    assert import_dataset(log, data, "p.", Selection(events=False, requests=False)) == {"items": 2}
    assert total(data, Selection(limit=5)) == 5


def test_requests_without_an_id_and_long_ones(log: Log) -> None:
    data = dataset()
    one = data.rows.slice(0, 1).to_pylist()[0]
    many = [{**one, "request_id": None, "item_id": f"i{k}"} for k in range(2500)]
    data.rows = form.table(form.ROWS, {k: [d.get(k) for d in many] for k in form.ROWS})
    import_dataset(log, data, "p.", Selection(events=False, items=False))
    import_dataset(log, data, "p.", Selection(events=False, items=False))
    found = [records.decode_request(r.key, r.value, r.timestamp) for r in everything(log)["requests"]]
    assert [len(r.candidates) for r in found] == [1000, 1000, 500] * 2
    ids = [r.request_id for r in found]
    assert len(set(ids)) == 3 and ids[:3] == ids[3:]  # the same again


def test_export_of_each_kind(log: Log, tmp_path: Path) -> None:
    import_dataset(log, dataset(), "p.")
    done = export_topic(log, "p.post-clicks", "p.", tmp_path / "x" / "e.parquet")
    t = pq.read_table(tmp_path / "x" / "e.parquet")
    assert done == {"records": 4, "raw": 0} and t.num_rows == 4
    first = min(t.to_pylist(), key=lambda r: r["timestamp"])
    assert first | {"offset": 0, "partition": 0} == {
        "partition": 0, "offset": 0, "timestamp": ZERO - DAY + 1000, "key": "u1", "headers": None, "user_id": "u1", "item_id": "a",
        "ts": ZERO - DAY, "event_id": None, "type": "order", "request_id": None, "position": None, "dwell_ms": 7, "value": 9.5,
        "lat": None, "lon": None, "surface": None, "attrs": None, "v": None, "more": None, "raw": None,
    }  # fmt: skip
    export_topic(log, "p.items", "p.", tmp_path / "i.parquet")
    item = pq.read_table(tmp_path / "i.parquet").to_pylist()[0]
    assert item["embedding"] == [1.0, 2.0] and json.loads(item["attrs"]) == {"colour": "red"}
    assert export_topic(log, "p.scores", "p.", tmp_path / "s.parquet") == {"records": 0, "raw": 0}
    assert pq.read_table(tmp_path / "s.parquet").schema.field("ctr").type == pa.list_(pa.float64())


def test_export_keeps_what_is_no_record(log: Log, tmp_path: Path) -> None:
    pack = msgspec.msgpack.encode
    values = [
        b"\xc1", None, b"", pack([1]), pack({"user_id": 5, "item_id": "a", "ts": 1, "new": {"x": b"\x00"}, "attrs": {"n": float("nan")}}),
        pack({1: 2}), pack({"ts": 1 << 63, "value": True}),
    ]  # fmt: skip
    writer = log.writer()
    for v in values:
        writer.append("p.clicks", b"\xff", v, partition=0, headers=(("why", b"\xfe"),))
    writer.close()
    assert export_topic(log, "p.clicks", "p.", tmp_path / "c.parquet") == {"records": 7, "raw": 6}
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    assert [r["raw"] for r in rows] == [None if v is None else v for v in values]
    assert rows[0]["key"] == "\\xff" and json.loads(rows[0]["headers"]) == {"why": "\\xfe"}
    assert rows[4]["item_id"] == "a" and rows[4]["user_id"] is None
    assert json.loads(rows[4]["more"]) == {"user_id": 5, "new": {"x": "AA=="}}
    assert json.loads(rows[4]["attrs"]) == {"n": "nan"}


def test_plan_and_differences(tmp_path: Path) -> None:
    log = open_log(f"file:{tmp_path}")
    assert {d.key for d in manage.differences(log, "p.")} == {"missing"}
    manage.apply(log, manage.plan(log, "p.", 4, config={"scores": {"retention.ms": "1000"}}))
    assert [str(d) for d in manage.differences(log, "p.")] == ["p.scores: retention.ms is 1000, 604800000 is wanted"]
    assert manage.differences(log, "p.", {"scores": {"retention.ms": "1000"}}) == []
    plan = manage.plan(log, "p.", None)
    assert not plan.create and [d.topic for d in plan.change] == ["p.scores"] and len(plan.same) == len(topics.ALL) - 1
    manage.apply(log, plan)
    assert manage.differences(log, "p.") == []
    assert {t.partitions for n, t in log.topics().items() if n.removeprefix("p.") in topics.USER_KEYED} == {4}
    with pytest.raises(UsageError, match=r"8 partitions can't be had: p\.impressions has 4"):
        manage.plan(log, "p.", 8)
    log.create([TopicInfo("q.clicks", 2, {}), TopicInfo("q.scores", 2, {}), TopicInfo("q.requests", 3, {})])
    odd = [d for d in manage.differences(log, "q.") if d.key == "partitions"]
    assert [str(d) for d in odd] == ["q.requests: partitions is 3, 2 is wanted"]
    with pytest.raises(UsageError, match="no such topic: nonsense"):
        manage.wanted("p.", 1, {"nonsense": {}})


class CommandLine:
    """Runs `stream-dmgin topics ...` in this process: code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *args: object) -> tuple[int, str, str]:
        before = signal.getsignal(signal.SIGPIPE)
        try:
            with pytest.raises(SystemExit) as e:
                main(["topics", *map(str, args)])
        finally:
            signal.signal(signal.SIGPIPE, before)
        captured = self.capsys.readouterr()
        return int(e.value.code or 0), captured.out, captured.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


@pytest.fixture(params=["file", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file:{tmp_path / 'l'}" if request.param == "file" else "kafka://" + request.getfixturevalue("kafka")


def test_the_command_line(run: CommandLine, url: str, prefix: str, tmp_path: Path) -> None:
    at = ("--log", url, "--prefix", prefix)
    code, out, _ = run("check", *at, "-o", "json")
    assert code == 1 and len(json.loads(out)["differences"]) == len(topics.ALL)
    assert run("apply", *at, "--dry-run")[0] == 0
    assert run("check", *at)[0] == 1  # nothing was done
    code, out, _ = run("apply", *at, "--partitions", 4, "--config", "scores:retention.ms=1000", "-o", "json")
    assert code == 0 and len(json.loads(out)["created"]) == len(topics.ALL)
    assert run("check", *at)[0] == 1
    code, out, _ = run("apply", *at, "-o", "json")
    assert code == 0 and json.loads(out)["changed"] == [
        {"topic": prefix + "scores", "key": "retention.ms", "found": "1000", "wanted": "604800000"}
    ]
    assert run("check", *at)[0] == 0
    form.write(dataset(), tmp_path / "d")
    code, out, err = run("import", tmp_path / "d", *at, "-o", "json")
    assert (code, json.loads(out)["written"]["requests"]) == (0, 8), err
    assert run("check", *at)[0] == 0  # longer than the contract asks for is fine
    code, out, _ = run("list", *at, "-o", "json")
    rows = {t["topic"]: t for t in json.loads(out)["topics"]}
    assert code == 0 and rows[prefix + "requests"]["records"] == 8 and rows[prefix + "requests"]["partitions"] == 4
    code, out, err = run("export", "requests", "--out", tmp_path / "r.parquet", *at, "-o", "json")
    assert (code, json.loads(out)["records"]) == (0, 8), err
    assert run("export", "nothing", "--out", tmp_path / "n.parquet", *at)[0] == 2
    assert run("apply", "--log", url, "--config", "nonsense")[0] == 2
