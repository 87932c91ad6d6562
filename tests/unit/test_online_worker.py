"""A worker's side of the online model: when it is learnt, and what becomes of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_dmgin import topics
from stream_dmgin.counters.increments import Increments
from stream_dmgin.features.spec import NOTHING, InputSpec, Reads
from stream_dmgin.log.base import Log, TopicInfo, open_log
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.registry import save_model, untrained
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.settings import load
from stream_dmgin.worker.followed import Followed
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.releases import reads

PREFIX = "dmgin."


def model(directory: Path, blocks: tuple[str, ...]) -> str:
    spec = InputSpec(
        groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8, blocks=blocks
    )
    made = untrained(directory.name, DMGINConfig(spec, (), width=16, item_width=8, hidden=(16, 8)))
    return save_model(directory, directory.name, made.network, Calibration(), {}, "For a test.\n")


def test_a_worker_learns_where_its_model_or_the_published_one_asks_for_it(tmp_path: Path) -> None:
    plain, learning, reading = (
        model(tmp_path / "models" / n, blocks)
        for n, blocks in (("plain", ()), ("learning", ("trend", "online")), ("reading", ("content",)))
    )
    meeting = model(tmp_path / "models" / "meeting", ("audience",))
    timely = model(tmp_path / "models" / "timely", ("rhythm",))
    at = {"data_dir": str(tmp_path), "worker.model": plain}
    settings = load(at, {})
    for control in ({}, {"model": {"id": plain}}, {"model": {"id": "gone"}}, {"model": "what"}):
        assert reads(settings, control) == NOTHING
    assert reads(settings, {"model": {"id": learning}}) == Reads(online=True)
    assert reads(settings, {"model": {"id": reading}}) == Reads(embedding=64)
    assert reads(settings, {"model": {"id": meeting}}) == Reads(online=True, embedding=64, audience=True)
    assert reads(settings, {"model": {"id": timely}}) == Reads(rhythm=True)
    both = {**at, "worker.model": learning}
    assert reads(load(both, {}), {}) == Reads(online=True)
    assert reads(load(both, {}), {"model": {"id": reading}}) == Reads(online=True, embedding=64)
    asked = {**at, "worker.online": "true", "worker.embedding": "32"}
    assert reads(load(asked, {}), {"model": {"id": reading}}) == Reads(online=True, embedding=32)
    asked = {**at, "worker.audience": "true", "worker.embedding": "32"}
    assert reads(load(asked, {}), {}) == Reads(online=True, embedding=32, audience=True)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = open_log(f"file:{tmp_path / 'log'}")
    log.create([TopicInfo(PREFIX + t, 1) for t in (topics.COUNTERS, topics.ITEMS, topics.CONTROL)])
    return log


def write(log: Log, first: int, last: int) -> None:
    """Ranges of partition 0."""
    w = log.writer()
    for k in range(first, last):
        r = np.random.default_rng(k)
        x = Increments(
            np.zeros(50, np.uint8), r.integers(1, 40, 50).astype(np.uint64), np.full(50, 1_900_000 + k),
            r.integers(0, 2, 50).astype(np.uint8), np.ones(50, np.int64), r.integers(0, 4, 50).astype(np.uint8),
        )  # fmt: skip
        for value in x.encode(0, {0: k}, {0: k + 1}, "a"):
            w.append(PREFIX + topics.COUNTERS, b"0", value, partition=0)
    w.close()


def followed(log: Log, directory: Path, learns: bool) -> tuple[int, bytes, bytes]:
    """What a worker's counters are after a start and a stop: where they began to read, the counters, the weights."""
    f = Followed(log, PREFIX, directory, Health(), lambda control: Reads(online=learns))
    began = f.counters_offset
    f.catch_up()
    f.close()
    return began, f.counters.canonical(), b"" if f.counters.online is None else f.counters.online.canonical()


def test_a_long_way_to_the_end_of_the_topics_is_told(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with log:
        write(log, 0, 3)
        followed(log, tmp_path / "a", learns=False)
        assert "records left" not in caplog.text
        monkeypatch.setattr("stream_dmgin.worker.followed.SAY_S", -1.0)
        followed(log, tmp_path / "b", learns=False)
    assert "reading dmgin.counters and dmgin.items: 3 records left after 0 s" in caplog.text


def test_weights_that_are_missing_are_learnt_again_from_the_topic(log: Log, tmp_path: Path) -> None:
    with log:
        write(log, 0, 5)
        assert followed(log, tmp_path / "a", learns=False)[0] == 0  # as a worker of an older version left it
        began, counters, learnt = followed(log, tmp_path / "a", learns=True)
        assert (began, counters, learnt) == followed(log, tmp_path / "b", learns=True) and began == 0
        write(log, 5, 8)
        assert followed(log, tmp_path / "a", learns=True)[0] == 5  # from the checkpoint
        write(log, 8, 9)
        assert followed(log, tmp_path / "a", learns=False)[0] == 8  # goes on, and forgets the weights
        write(log, 9, 12)
        again = followed(log, tmp_path / "a", learns=True)
        assert again[0] == 0 and again == followed(log, tmp_path / "c", learns=True)
        assert followed(log, tmp_path / "a", learns=True)[0] == 12
