"""What older versions have written opens, and what newer ones write is refused in so many words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rocksdict import Rdict

from stream_dmgin.errors import FormatError
from stream_dmgin.features.spec import CLASS_OF_TYPE
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.layout import ROW_META, STATE_FORMAT
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.places import META, store_path
from stream_dmgin.state.ops.restore import plan, restore
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.store import open_store, options
from stream_dmgin.topics import EVENTS
from stream_dmgin.worker.partitions import read_meta, write_meta
from tests.fixtures.make import HERE, contents, fold, records

STATES = sorted(p for p in HERE.glob("state-*") if p.is_dir())
SNAPSHOTS = sorted(HERE.glob("snapshot-*"))


@pytest.fixture(params=STATES, ids=lambda p: p.name)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: opening a store may write to it."""
    shutil.copytree(request.param, tmp_path / request.param.name)
    return tmp_path / request.param.name


def check_clicks(engine: StateEngine) -> None:
    """The number of clicks for life, which format 1 didn't hold, is that of all groups, spilled ones too."""
    users = sorted(engine.users())
    arrays = UserArrays.allocate(len(users), 1, 1)
    engine.read([u.encode() for u in users], arrays)
    of_class = {t for t, c in CLASS_OF_TYPE.items() if c == "click"}
    for b, user in enumerate(users):
        shown = engine.show(user)
        assert shown is not None
        clicks = sum(n for g in shown["groups"] for t, n in g["counts"].items() if t in of_class)
        assert arrays.n_clicks[b] == clicks > 0


def test_there_is_a_fixture_of_each_format() -> None:
    assert [p.name for p in STATES] == [f"state-{n}" for n in range(1, STATE_FORMAT + 1)] and SNAPSHOTS


def test_a_store_of_each_format_opens_and_goes_on(state: Path) -> None:
    want = json.loads((HERE / f"{state.name}.json").read_text())
    stores = Stores.of(state)
    assert contents(stores) == want
    for p in stores.present():
        engine = stores.open(p, read_only=False)
        check_clicks(engine)
        before = engine.offsets
        fold(engine, records(99, p, {t: before[n] for n, t in enumerate(EVENTS)}))
        engine.commit()
        assert sum(engine.offsets.values()) > sum(before.values())
        engine.close()
    assert contents(stores) != want


@pytest.mark.parametrize("kept", SNAPSHOTS, ids=lambda p: p.name)
def test_a_snapshot_of_each_format_restores(kept: Path, tmp_path: Path) -> None:
    place = Place(str(kept))
    done = restore(place, tmp_path, plan(place, tmp_path))
    assert done["partitions"] == [0, 1] and not done["problems"]
    fixture = f"state-{place.manifest(0, done['ids']['0']).state_format}"
    assert contents(Stores.of(tmp_path)) == json.loads((HERE / f"{fixture}.json").read_text())
    shutil.copytree(HERE / fixture, tmp_path / "other")
    assert diff(Stores.of(tmp_path), Stores.of(tmp_path / "other"))["ok"]


def test_newer_and_unknown_stores_are_refused(state: Path) -> None:
    path = store_path(state / "state", 0)
    for row, word in (
        (b'{"format": 99, "partition": 0}', "upgrade stream-dmgin"),
        (b'{"format": 0, "partition": 0}', "state rebuild"),
        (b'{"partition": 0}', "restore a snapshot or rebuild"),
        (b"rubbish", "restore a snapshot or rebuild"),
        (None, "not a state of stream-dmgin"),
    ):
        db = Rdict(str(path), options(False))
        if row is None:
            db.delete(ROW_META)
        else:
            db[ROW_META] = row
        db.close()
        with pytest.raises(FormatError, match=word):
            open_store(path, 0, read_only=True)


def test_a_newer_directory_is_refused(state: Path) -> None:
    path = state / "state" / META
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in meta.items() if k != "format"}))  # of before there was one
    assert Stores.of(state).partitions == 2
    path.write_text(json.dumps({**meta, "format": 99}))
    for read in (Stores.of, lambda d: read_meta(d / "state")):
        with pytest.raises(FormatError, match="upgrade stream-dmgin"):
            read(state)


def test_stores_of_other_topics_are_refused(tmp_path: Path) -> None:
    """Their offsets mean nothing there: the state would be wrong without a word."""
    write_meta(tmp_path, 4, "dmgin.", GroupMap.empty())
    before = (tmp_path / META).read_bytes()
    with pytest.raises(FormatError, match=r"folded from topics dmgin\.\*, not other\.\*"):
        write_meta(tmp_path, 4, "other.", GroupMap.empty())
    with pytest.raises(FormatError, match="folded from 4 partitions, the log has 7"):
        write_meta(tmp_path, 7, "dmgin.", GroupMap.empty())
    assert (tmp_path / META).read_bytes() == before
    write_meta(tmp_path, 4, "dmgin.", GroupMap.empty())
