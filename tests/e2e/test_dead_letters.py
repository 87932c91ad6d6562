"""`dead-letters` on a log: look, choose, send back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Record, TopicInfo, open_log
from stream_dmgin.log.scan import scan
from stream_dmgin.worker.dead_letters import dead_letter, without_value

T = 1_760_000_000_000
HEADERS = (("traceparent", b"00-1"),)
BAD = [
    (Record("dmgin.clicks", 1, 10, T, b"u", b"\xc1\xff", HEADERS), RecordError("decode", "not a MessagePack map")),
    (Record("dmgin.clicks", 1, 11, T + 1, b"u", msgpack.packb({"user_id": "u"}), ()), RecordError("schema", "no item_id")),
    (Record("dmgin.requests", 0, 5, T + 2, None, msgpack.packb({"x": float("nan"), "b": b"\xff"}), ()), RecordError("schema", "no user_id")),
    (Record("dmgin.clicks", 1, 10, T, b"u", b"\xc1\xff", HEADERS), RecordError("decode", "not a MessagePack map")),  # again, after a crash
]  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A log with four dead letters of this product, one without its value, and a foreign one."""
    url = f"file:{tmp_path / 'log'}"
    with open_log(url) as log:
        log.create([TopicInfo("dmgin.clicks", 4), TopicInfo("dmgin.requests", 4), TopicInfo("dmgin.dead-letters", 1)])
        w = log.writer()
        for record, error in BAD:
            d = dead_letter(record, error)
            w.append("dmgin.dead-letters", d.key, d.value, timestamp=d.timestamp, headers=d.headers)
        slim = without_value(Record("dmgin.clicks", 2, 3, T, b"u", b"x" * 2000), RecordError("decode", "no"))
        w.append("dmgin.dead-letters", slim.key, slim.value, timestamp=slim.timestamp, headers=slim.headers)
        w.append("dmgin.dead-letters", b"k", b"v", timestamp=T)
        w.flush()
        w.close()
    return url


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any]:
    """Exit code, and the JSON document or the text."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in args])
    out = capsys.readouterr()
    code = int(e.value.code or 0)
    return code, (json.loads(out.out) if "json" in args and not code else out.out + out.err)


def test_list_counts_and_shows_the_newest(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, d = run(capsys, "dead-letters", "list", "--log", url, "--limit", "2", "-o", "json")
    assert code == 0 and d["total"] == 6
    assert {"topic": "dmgin.clicks", "reason": "decode", "count": 3} in d["counts"]
    assert [x["offset"] for x in d["letters"]] == [4, 5]
    assert d["letters"][1]["topic"] == ""
    _, d = run(capsys, "dead-letters", "list", "--log", url, "--topic", "requests", "--reason", "schema", "-o", "json")
    assert d["letters"] == [
        {"offset": 2, "topic": "dmgin.requests", "partition": 0, "at": 5, "timestamp": T + 2, "reason": "schema",
         "message": "no user_id", "bytes": len(BAD[2][0].value or b"")}
    ]  # fmt: skip
    code, text = run(capsys, "dead-letters", "list", "--log", url)
    assert code == 0 and "6 dead letters" in text and "dmgin.clicks/1 offset 10" in text and "2025-10-09" in text


def test_show_gives_everything_back(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, d = run(capsys, "dead-letters", "show", "0", "--log", url, "-o", "json")
    assert (d["key"], d["value_base64"], d["headers"], d["decoded"]) == ("u", "wf8=", {"traceparent": "00-1"}, None)
    assert (d["topic"], d["partition"], d["at"], d["reason"]) == ("dmgin.clicks", 1, 10, "decode")
    _, d = run(capsys, "dead-letters", "show", "2", "--log", url, "-o", "json")
    assert d["decoded"] == {"x": "nan", "b": "\\xff"} and d["key"] is None
    code, text = run(capsys, "dead-letters", "show", "1", "--log", url)
    assert code == 0 and "no item_id" in text
    code, text = run(capsys, "dead-letters", "show", "77", "--log", url)
    assert code == 2 and "offsets 0 to 5 are kept" in text


def test_replay_sends_each_original_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, d = run(capsys, "dead-letters", "replay", "--all", "--dry-run", "--log", url, "-o", "json")
    assert code == 0 and d["would_replay"] == 3 and d["replayed"] == 0
    assert d["left_out"] == {"repeated": 1, "not_ours": 1, "without_value": 1, "user_erased": 0}
    assert records(url, "dmgin.clicks") == []
    code, d = run(capsys, "dead-letters", "replay", "--all", "--yes", "--log", url, "-o", "json")
    assert code == 0 and d["replayed"] == 3
    back = records(url, "dmgin.clicks")
    assert [(r.key, r.value, r.headers) for r in back] == [(b"u", b"\xc1\xff", HEADERS), (b"u", BAD[1][0].value, ())]
    assert all(r.timestamp > T + 10 for r in back)
    assert [(r.partition, r.key, r.value) for r in records(url, "dmgin.requests")] == [(0, None, BAD[2][0].value)]


def test_replay_of_one_with_its_timestamp(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "dead-letters", "replay", "1", "--keep-timestamp", "--yes", "--log", url)
    assert code == 0 and "replayed 1" in text
    (r,) = records(url, "dmgin.clicks")
    assert (r.value, r.timestamp) == (BAD[1][0].value, T + 1)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("replay",), 2, "which letters?"),
        (("replay", "1", "--all"), 2, "not both"),
        (("replay", "--all"), 2, "--yes"),
        (("replay", "99", "--yes"), 2, "offsets 0 to 5"),
        (("list", "--prefix", "other."), 2, "no topic other.dead-letters"),
    ],
)
def test_what_can_not_be_done_says_why(
    url: str, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: int, said: str
) -> None:
    got, text = run(capsys, "dead-letters", *args, "--log", url)
    assert got == code and said in text


def records(url: str, topic: str) -> list[Record]:
    with open_log(url) as log:
        ranges = {(topic, p): (0, end) for p, end in log.ends(topic).items()}
        return [b.record(i) for b, inside in scan(log, ranges) for i in range(len(b)) if inside[i]]
