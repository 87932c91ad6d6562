"""Dead letters have a limit, and a record on which the processing fails is skipped by an order only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_dmgin import control
from stream_dmgin.cli.main import main
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Batch, open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.settings import Settings
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.inspect import show_user
from stream_dmgin.state.ops.refold import Refold
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from stream_dmgin.worker import loop
from stream_dmgin.worker.dead_letter_topic import DeadLetters
from stream_dmgin.worker.limits import DeadLetterLimit, Poison, TooManyDeadLetters
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write

PARTITIONS = 2


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    s = settings_of(tmp_path)
    make_topics(s, PARTITIONS)
    return s


def letters(s: Settings) -> list[tuple[str, str]]:
    with open_log(s.log) as log:
        return [(d.original.topic, d.reason) for d in DeadLetters(log, s.prefix)]


def cli(capsys: pytest.CaptureFixture[str], s: Settings, *args: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as e:
        main([*args, "--log", s.log, "--data-dir", str(s.data_dir), "-o", "json"])
    out = capsys.readouterr()
    code = int(e.value.code or 0)
    return code, json.loads(out.out) if out.out else out.err


def test_the_window_counts_the_last_records() -> None:
    limit = DeadLetterLimit(0.5, 10, 100)
    limit.take(9, 9)  # few
    limit.take(1000, 400)
    limit.take(60, 30)
    with pytest.raises(TooManyDeadLetters, match="of the last"):
        limit.take(60, 60)
    limit = DeadLetterLimit(0.5, 10, 100)
    for _ in range(50):
        limit.take(10, 5)  # half is not more than half
    limit.take(10, 0)
    for _ in range(3):
        limit.take(1, 1)
    off = DeadLetterLimit(1.0, 1, 1)
    off.take(10, 10)


def test_the_worker_stops_rather_than_divert_everything(settings: Settings) -> None:
    write(settings, [event(f"u{k}", k) for k in range(50)])
    low = {"worker.dead_letter_count": 100, "worker.dead_letter_window": 200}
    s = settings_of(settings.data_dir.parent, **low)
    write(s, [("clicks", b"u1", b"\xc1")] * 60)
    with running(s) as w:
        turn_until(w, folded(w), "the fold")
    assert len(letters(s)) == 60  # more than half, but few
    write(s, [("clicks", b"u1", b"\xc1")] * 500)
    with pytest.raises(TooManyDeadLetters, match=r"dead_letter_share"), running(s) as w:
        turn_until(w, folded(w), "the end")
    assert len(letters(s)) < 60 + 100
    with running(settings_of(settings.data_dir.parent, **{**low, "worker.dead_letter_share": 1})) as w:
        turn_until(w, folded(w), "the fold")
    assert len(set(letters(s))) == 1 and len(letters(s)) >= 560
    with open_log(s.log) as log:
        assert verify(Stores.of(s.data_dir), log).ok


def test_poison_stops_the_worker_until_it_is_skipped_by_an_order(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser with a defect stands in for the defect that nobody knows: it fails on one value."""
    write(settings, [event(f"u{k}", k) for k in range(20)])
    write(settings, [("clicks", b"u1", event("u1", 99)[2] + b"POISON"), event("u1", 21)])
    p = partition_of(b"u1", PARTITIONS)
    real = loop.parse_events

    def defect(batch: Batch, numbers: Any) -> Any:
        if any((batch.value(i) or b"").endswith(b"POISON") for i in range(len(batch))):
            raise ZeroDivisionError("a defect")
        return real(batch, numbers)

    monkeypatch.setattr(loop, "parse_events", defect)
    with pytest.raises(Poison) as stopped, running(settings) as w:
        turn_until(w, folded(w), "the end")
    place = str(stopped.value).split(":")[0]
    assert place.startswith(f"dmgin.clicks/{p}/") and f"skip {place} --reason" in str(stopped.value)
    with pytest.raises(Poison), running(settings) as w:  # a restart alone doesn't help
        turn_until(w, folded(w), "the end")
    assert letters(settings) == []

    assert cli(capsys, settings, "dead-letters", "skip", place, "--reason", "x")[0] == 2  # nobody answers
    code, told = cli(capsys, settings, "dead-letters", "skip", place, "--reason", "x", "--dry-run")
    assert code == 0 and told["key"] == "u1" and not told["ordered"]
    for wrong in ("clicks/0", "clicks/0/999", "scores/0/1", "dead-letters/0/0"):
        assert cli(capsys, settings, "dead-letters", "skip", wrong, "--reason", "x", "--yes")[0] == 2
    code, told = cli(capsys, settings, "dead-letters", "skip", place, "--reason", "defect 7", "--yes")
    assert code == 0 and told["ordered"]
    line = json.loads((settings.data_dir / "audit.log").read_text().splitlines()[-1])
    assert (line["action"], line["reason"], line["partition"]) == ("skip ordered", "defect 7", p)
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
    with open_log(settings.log) as log:
        (letter,) = list(DeadLetters(log, settings.prefix))
    assert (letter.reason, letter.message) == ("skipped", "defect 7")
    assert letter.original.value is not None and letter.original.value.endswith(b"POISON")
    assert show_user(Stores.of(settings.data_dir), "u1")["events"] == 2  # type: ignore[index]
    code, told = cli(capsys, settings, "dead-letters", "skip", place, "--reason", "again", "--yes")
    assert code == 2 and "is folded" in told
    monkeypatch.setattr("stream_dmgin.state.ops.refold.parse_events", defect)
    with open_log(settings.log) as log:
        assert verify(Stores.of(settings.data_dir), log).ok


def test_a_fold_that_fails_names_the_records(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write(settings, [event("u1", k) for k in range(5)])
    real = StateEngine.fold

    def defect(self: StateEngine, cols: Any, rows: Any) -> int:
        if (cols.offset[rows] == 3).any():
            raise ZeroDivisionError("a defect")
        return real(self, cols, rows)

    monkeypatch.setattr(StateEngine, "fold", defect)
    p = partition_of(b"u1", PARTITIONS)
    with pytest.raises(Poison, match=rf"clicks/{p} 0 to 4.*MAX_BATCH=1"), running(settings) as w:
        turn_until(w, folded(w), "the end")
    one = settings_of(settings.data_dir.parent, **{"worker.max_batch": 1})
    with pytest.raises(Poison, match=rf"dmgin.clicks/{p}/3: the processing fails"), running(one) as w:
        turn_until(w, folded(w), "the end")


def test_an_item_that_is_poison(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Topics that every worker reads have the same rule."""
    from stream_dmgin.features.catalogue import Catalogue

    real = Catalogue.fold

    def defect(self: Catalogue, key: bytes | None, value: bytes | None) -> None:
        if value == b"POISON":
            raise ZeroDivisionError("a defect")
        real(self, key, value)

    monkeypatch.setattr(Catalogue, "fold", defect)
    write(settings, [("items", b"i1", b"POISON")])
    with pytest.raises(Poison, match=r"dmgin\.items/0/0"), running(settings):
        pass
    assert cli(capsys, settings, "dead-letters", "skip", "items/0/0", "--reason", "x", "--yes")[0] == 0
    with running(settings) as w:
        turn_until(w, lambda: w.loop.totals.dead_letters, "the dead letter")
    assert letters(settings) == [("dmgin.items", "skipped")]


def test_letters_of_an_erased_user_are_not_sent_back(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write(settings, [("clicks", b"u1", b"\xc1"), ("clicks", b"u2", b"\xc1")])
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
    assert cli(capsys, settings, "state", "erase", "u1", "--yes")[0] == 0
    code, told = cli(capsys, settings, "dead-letters", "replay", "--all", "--dry-run")
    assert code == 0 and told["would_replay"] == 1 and told["left_out"]["user_erased"] == 1


def test_verify_reads_the_orders_of_the_log(settings: Settings) -> None:
    found = control.Control()
    found.take(b"skip/clicks/0/0", control.encode(control.Skip("clicks", 0, 0, "x", 1)))
    write(settings, [event("u1", 1)])
    p = partition_of(b"u1", PARTITIONS)
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
    stores = Stores.of(settings.data_dir)
    with open_log(settings.log) as log:
        offsets = {"dmgin.clicks": 1}
        found.skips = {("clicks", p, 0): "x"}
        again, counted = Refold(stores, log, p, offsets, GroupMap.empty(), lambda n: None, found).fold(
            0, 0, (1 << 64) - 1
        )
        again.close()
        assert counted == 0
