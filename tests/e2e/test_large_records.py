"""Records at the limits of their topics must not stop the worker for ever: it would meet them again at each start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin import topics
from stream_dmgin.cli.main import main
from stream_dmgin.log.base import Record, TopicInfo, open_log
from stream_dmgin.log.scan import scan
from stream_dmgin.worker.dead_letters import read

T = 1_760_000_000_000
SMALL = {"max.message.bytes": "4000"}


def work(capsys: pytest.CaptureFixture[str], url: str, data: Path) -> Any:
    with pytest.raises(SystemExit) as e:
        main(["worker", "--log", url, "--data-dir", str(data), "--until-end", "--http", "off", "-o", "json"])
    out = capsys.readouterr()
    assert not e.value.code, out.err
    return json.loads(out.out)


def all_of(url: str, name: str) -> list[Record]:
    with open_log(url) as log:
        topic = f"dmgin.{name}"
        ranges = {(topic, p): (0, end) for p, end in log.ends(topic).items()}
        return [b.record(i) for b, inside in scan(log, ranges) for i in range(len(b)) if inside[i]]


def write(url: str, records: list[tuple[str, bytes, bytes]], small: tuple[str, ...] = ()) -> None:
    with open_log(url) as log:
        log.create(
            TopicInfo(f"dmgin.{t}", 2 if x.user_keyed else 1, SMALL if t in small else {})
            for t, x in topics.ALL.items()
        )
        w = log.writer()
        for topic, key, value in records:
            w.append(f"dmgin.{topic}", key, value, timestamp=T)
        w.flush()
        w.close()


def request(**fields: Any) -> bytes:
    return msgpack.packb({"request_id": "r", "user_id": "u", "ts": T, "candidates": ["i"], **fields})


@pytest.mark.timeout(400)
def test_what_does_not_fit_is_said_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Topics that someone else made: events and requests may be larger there than dead letters and scores."""
    url = f"file:{tmp_path / 'log'}"
    click = msgpack.packb({"user_id": "u", "item_id": "i", "ts": T})
    many = [f"item {k:040}" for k in range(200)]
    write(
        url,
        [("clicks", b"u", b"\xc1" * 3900), ("clicks", b"u", b"\xc1" * 9000), ("clicks", b"u", click),
         ("requests", b"u", request(candidates=many)), ("requests", b"u", request(request_id="s"))],
        small=("dead-letters", "scores"),
    )  # fmt: skip
    done = work(capsys, url, tmp_path / "data")
    assert done["events"] == 3 and done["requests"] == done["scores"] == done["dead_letters"] == 2
    letters = [read(r) for r in all_of(url, "dead-letters")]
    assert {(d.original.offset, d.original.value) for d in letters} == {(0, None), (1, None)}
    assert all("too large" in d.message for d in letters)
    scores = {s["request_id"]: s for s in (msgpack.unpackb(r.value or b"") for r in all_of(url, "scores"))}
    assert scores["s"]["status"] == "ok"
    assert scores["r"]["status"] == "rejected" and "bytes" in scores["r"]["reason"]
    assert work(capsys, url, tmp_path / "data")["events"] == 0


def test_ids_of_megabytes_are_no_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rejection that repeated them, in its key and in its value, would be larger than any topic takes."""
    url = f"file:{tmp_path / 'log'}"
    huge = "x" * 5_000_000
    write(url, [("requests", b"u", request(request_id=huge, user_id=huge)), ("requests", b"u", request())])
    done = work(capsys, url, tmp_path / "data")
    assert (done["requests"], done["scores"], done["dead_letters"]) == (2, 1, 1)
    (letter,) = [read(r) for r in all_of(url, "dead-letters")]
    assert letter.reason == "id" and len(letter.original.value or b"") > 10_000_000
