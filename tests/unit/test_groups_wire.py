"""Group maps on the control topic: whole, or a clear word; and beside the stores."""

from __future__ import annotations

import msgspec
import pytest

from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.groups import wire
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.state.ops.places import Maps, new_store, other_stores, point, store_path
from stream_dmgin.worker.publish import compare_groups, publish_groups
from tests.workers import make_topics, settings_of

OLD = GroupMap({f"item {k}": k % 5 for k in range(300)})
NEW = GroupMap({f"item {k}": k % 7 for k in range(310)})


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(wire, "PART_BYTES", 500)


def test_a_map_there_and_back_in_parts(tmp_path, parts):
    record, rows = wire.records(OLD, tmp_path / "scratch")
    assert record["parts"] == len(rows) > 2 and not (tmp_path / "scratch").exists()
    found = wire.fetch(dict(rows), record, tmp_path / "map.parquet")
    assert found.items == OLD.items and found.id == OLD.id == GroupMap.load(tmp_path / "map.parquet").id


def test_what_is_not_whole_is_said_so(tmp_path, parts):
    record, rows = wire.records(OLD, tmp_path / "scratch")
    held = dict(rows)
    to = tmp_path / "map.parquet"
    for damaged, word in (
        ({**held, rows[1][0]: None}, "not whole"),
        ({**held, rows[1][0]: msgspec.msgpack.encode(b"x")}, "not whole"),
        ({**held, rows[1][0]: b"\xc1"}, "can't be understood"),
    ):
        with pytest.raises(StreamDmginError, match=word):
            wire.fetch(damaged, record, to)
    with pytest.raises(StreamDmginError, match="can't be understood"):
        wire.fetch(held, {"id": OLD.id}, to)
    other, more = wire.records(NEW, tmp_path / "scratch")
    renamed = {wire.part_key("another", n): value for n, (_, value) in enumerate(more)}
    with pytest.raises(StreamDmginError, match=f"that of {NEW.id}"):
        wire.fetch(renamed, {**other, "id": "another"}, to)
    assert not to.exists()


def test_maps_that_can_not_be_sent(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="name of a file"):
        wire.records(GroupMap({"i": 1}, "../up"), tmp_path / "scratch")
    monkeypatch.setattr(wire, "BYTES_MAX", 100)
    with pytest.raises(InputError, match="at most 100"):
        wire.records(OLD, tmp_path / "scratch")


def test_publishing_takes_back_the_content_of_the_last_map(tmp_path, parts):
    settings = settings_of(tmp_path)
    make_topics(settings)
    assert compare_groups(settings, OLD) == {"id": OLD.id, "items": 300, "active": None}
    publish_groups(settings, OLD)
    moved = sum(NEW.lookup(i) != g for i, g in OLD.items.items())
    assert compare_groups(settings, NEW) == {"id": NEW.id, "items": 310, "active": OLD.id, "moved": moved, "added": 10}
    publish_groups(settings, NEW)
    publish_groups(settings, NEW)  # again: only the record that names it
    with open_log(settings.log) as log:
        held = wire.control_records(log, settings.topic("control"))
        ends = log.ends(settings.topic("control"))
    record = wire.active(held)
    assert record["id"] == NEW.id
    assert {k.split(b"/")[1] for k, v in held.items() if v and k.startswith(wire.PARTS)} == {NEW.id.encode()}
    assert ends[0] == 2 * wire.records(OLD, tmp_path / "x")[0]["parts"] + record["parts"] + 3
    assert wire.fetch(held, record, tmp_path / "map.parquet").items == NEW.items


def test_where_stores_and_maps_lie(tmp_path):
    assert store_path(tmp_path, 3) == tmp_path / "p00003" and other_stores(tmp_path, 3) == []
    (tmp_path / "p00003").mkdir()
    built = new_store(tmp_path, 3, "csv-1")
    built.mkdir()
    assert built.name == "p00003.csv-1" and new_store(tmp_path, 3, "csv-1").name == "p00003.csv-1.2"
    assert other_stores(tmp_path, 3) == [built]
    point(tmp_path, 3, built)
    assert store_path(tmp_path, 3) == built and other_stores(tmp_path, 3) == [tmp_path / "p00003"]
    maps = Maps(tmp_path)
    maps.keep(OLD)
    assert Maps(tmp_path).load(OLD.id).items == OLD.items and len(maps.load("none")) == 0
    with pytest.raises(InputError, match="Put it back"):
        maps.load("csv-unknown")
