"""What the demo counts, and where it writes."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from stream_dmgin.demo.place import choose
from stream_dmgin.demo.tally import Tally
from stream_dmgin.demo.view import Screen, sparkline
from stream_dmgin.errors import UsageError
from stream_dmgin.log.base import TopicInfo, open_log
from stream_dmgin.settings import Settings, load


def tally(requests: int = 40, late: int = 0) -> Tally:
    t = Tally()
    for i in range(requests):
        t.event("impressions", "s0")
        t.request(f"q{i}", 1000, "u1", 5000, "feed", ["s0", "s1", "s2"])
        t.truth(f"q{i}", [0.8, 0.1, 0.5], [1, 0])
        t.score(f"q{i}", 1000 + (5000 if i < late else 10), "ok", [0.7, 0.2, 0.4], "m")
    return t


def test_quality_counts_what_was_shown() -> None:
    q = tally().quality()
    assert (q.rows, q.clicks, q.auc, q.oracle_auc) == (80, 40, 1.0, 1.0)
    assert q.oracle_logloss < q.logloss < q.floor_logloss
    assert 0 < q.closed < 1


def test_a_score_that_may_know_its_outcome_is_not_in_the_quality() -> None:
    t = tally(late=10)
    assert (t.scores, t.late, t.quality().rows) == (40, 10, 60)


def test_scores_come_in_any_order_and_count_once() -> None:
    t = Tally()
    t.score("q", 1010, "ok", [0.5, 0.5], "m")
    t.score("q", 1090, "ok", [0.5, 0.5], "m")
    t.truth("q", [0.5, 0.5], [1, 0])
    assert t.quality().rows == 0
    t.request("q", 1000, "u", 0, "feed", ["a", "b"])
    t.request("q", 1000, "u", 0, "feed", ["a", "b"])
    assert (t.requests, t.scores, t.unanswered(), t.quality().rows) == (1, 1, 0, 2)
    assert t.latencies().tolist() == [10.0]


def test_the_floor_knows_nothing_that_came_after_the_request() -> None:
    t = Tally()
    t.request("q", 0, "u", 0, "feed", ["a", "b"])
    for _ in range(100):
        t.event("impressions", "a")
        t.event("clicks", "a")
    t.truth("q", [0.9, 0.1], [1, 0])
    t.score("q", 1, "ok", [0.9, 0.1], "m")
    assert t.quality().floor_auc == 0.5


def test_the_screen_draws_in_every_phase() -> None:
    for t in (Tally(), tally()):
        screen = Screen(t, "file:x", {}, 10)
        screen.see()
        screen.quality = t.quality()
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(screen)
        assert max(map(len, console.export_text().splitlines())) <= 80
    assert sparkline([0, 4, 8]) == " ▄█"


def settings(data: Path | None, log: Path) -> Settings:
    return load({"data_dir": None if data is None else str(data), "log": f"file:{log}"}, environ={})


def test_topics_with_records_are_left_alone(tmp_path: Path) -> None:
    s = settings(tmp_path / "d", tmp_path / "log")
    with ExitStack() as stack:
        assert choose(s, False, stack, lambda _: None).settings.prefix == "dmgin."
    with open_log(s.log) as log:
        log.create([TopicInfo("dmgin.clicks", 1)])
        writer = log.writer()
        writer.append("dmgin.clicks", b"u", b"x")
        writer.close()
    said: list[str] = []
    with ExitStack() as stack:
        place = choose(s, False, stack, said.append)
        assert place.settings.prefix.startswith("dmgin.demo-") and place.settings.prefix in said[0]


def test_a_data_directory_with_state_gets_a_folder_inside(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with ExitStack() as stack:
        place = choose(settings(tmp_path, tmp_path / "log"), False, stack, lambda _: None)
    assert place.settings.data_dir.parent == tmp_path and place.settings.data_dir.name.startswith("demo-")


def test_the_default_directory_is_emptied_only_if_it_is_the_demos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / ".stream-dmgin" / "demo"
    own.mkdir(parents=True)
    (own / "precious").touch()
    with ExitStack() as stack, pytest.raises(UsageError, match="not made by the demo"):
        choose(settings(None, tmp_path / "log"), False, stack, lambda _: None)
    (own / ".demo").touch()
    with ExitStack() as stack:
        choose(settings(None, tmp_path / "log"), False, stack, lambda _: None)
    assert not (own / "precious").exists()
