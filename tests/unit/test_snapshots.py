"""Snapshots of real stores to a directory and to memory: what goes up, what comes back, and what happens when something is torn."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.errors import FormatError, InputError, StoreBusy
from stream_dmgin.log.base import open_log
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.rebuild import rebuild
from stream_dmgin.state.ops.restore import plan, restore
from stream_dmgin.state.ops.stores import META, Stores, store_path
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place, SnapshotsUnavailable
from stream_dmgin.state.snapshots.restore import restore_partition, restoring_path
from stream_dmgin.state.snapshots.shared_maps import sweep_maps
from stream_dmgin.state.snapshots.upload import sweep
from stream_dmgin.worker.snapshots import snapshot
from tests.e2e.test_state import PARTITIONS, TOPICS, USERS, World
from tests.streams import Shape, random_log

SHAPE = Shape(n=700, users=USERS, items=tuple(f"i{k}" for k in range(60)), ts_range=10**7)
numbers = itertools.count()
SIDE_ROW = (b"r/next", (77).to_bytes(8, "big"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("COLUMNS", "250")
    w = World(tmp_path)
    more(w, 1)
    return w


@pytest.fixture(params=["memory", "directory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://m{next(numbers)}/snapshots" if request.param == "memory" else str(tmp_path / "kept")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def more(world: World, seed: int) -> None:
    """More events, folded and committed, with a row as the worker keeps them."""
    world.write(random_log(random.Random(seed), SHAPE))
    world.fold()
    for p in range(PARTITIONS):
        engine = world.engine(p)
        engine.commit([SIDE_ROW])
        engine.close()


def restored(url: str, data_dir: Path, id_: str | None = None) -> dict:
    place = Place(url)
    return restore(place, data_dir, plan(place, data_dir, id_), id_)


def offsets(data_dir: Path) -> dict[str, dict[str, int]]:
    stores = Stores.of(data_dir)
    out = {}
    for p in stores.present():
        engine = stores.open(p)
        out[str(p)] = stores.offsets(engine)
        engine.close()
    return out


def test_what_comes_back_is_what_went(world: World, url: str, tmp_path: Path) -> None:
    done = snapshot(world.data, url, None)
    assert done["partitions"] == [0, 1, 2] and done["users"] == 30
    assert done["offsets"] == offsets(world.data)
    assert done["bytes_uploaded"] >= done["bytes"] > 0  # the group map comes on top
    assert not [x for x in (world.data / "snapshots").iterdir() if x.is_dir()]
    back = restored(url, tmp_path / "b")
    assert back["partitions"] == [0, 1, 2] and not back["problems"] and not back["failed"]
    assert json.loads((tmp_path / "b/state" / META).read_text()) == json.loads(
        (world.data / "state" / META).read_text()
    )
    report = diff(Stores.of(world.data), Stores.of(tmp_path / "b"))
    assert report["ok"] and report["users_a"] == report["users_b"] == 30
    engine = Stores.of(tmp_path / "b").open(1)
    assert engine.get(SIDE_ROW[0]) == SIDE_ROW[1]
    engine.close()
    assert Place(url).manifest(1, done["id"]).requests == 77
    # restore + tail is the fold of the whole log
    world.write(random_log(random.Random(9), SHAPE))
    world.fold()
    whole, world.data = world.data, tmp_path / "b"
    world.fold()
    assert diff(Stores.of(whole), Stores.of(world.data))["ok"]


def test_only_what_changed_goes_up(world: World, url: str) -> None:
    first = snapshot(world.data, url, None)
    again = snapshot(world.data, url, None)
    assert again["bytes_uploaded"] < first["bytes"] / 4  # RocksDB's small files, no SST file
    sst = {f for f in Place(url).manifest(0, again["id"]).files if f.name.endswith(".sst")}
    assert sst <= set(Place(url).manifest(0, first["id"]).files) and sst
    world.write([("clicks", {"user_id": "u1", "item_id": "i1", "ts": 1_760_000_000_000})])
    world.fold()
    third = snapshot(world.data, url, None)
    assert third["bytes_uploaded"] < third["bytes"] / 2


def test_keep_deletes_what_no_manifest_refers_to(world: World, url: str, tmp_path: Path) -> None:
    ids = []
    for k in range(4):
        more(world, 10 + k)
        done = snapshot(world.data, url, 2)
        ids.append(done["id"])
    assert {d["id"] for d in done["deleted"]} == {ids[1]}
    place = Place(url)
    for p in range(PARTITIONS):
        assert place.ids(p) == [ids[3], ids[2]]
        assert set(place.blobs(p)) == {f.sha256 for i in ids[2:] for f in place.manifest(p, i).files}
        assert sweep(place, p) == 0
    assert not restored(url, tmp_path / "older", ids[2])["failed"]
    dry = snapshot(world.data, url, 1, dry_run=True)
    assert {d["id"] for d in dry["deleted"]} == set(ids[2:]) and place.ids(0) == [ids[3], ids[2]]
    assert dry["bytes_uploaded"] < dry["bytes"]


@pytest.mark.parametrize("harm", ["missing", "torn", "changed", "manifest"])
def test_a_damaged_snapshot_falls_back_to_an_older_one(world: World, kept: Path, tmp_path: Path, harm: str) -> None:
    old = snapshot(world.data, str(kept), None)
    was = offsets(world.data)
    more(world, 2)
    new = snapshot(world.data, str(kept), None)
    m = Place(str(kept)).manifest(1, new["id"])
    fresh = {f.sha256 for f in m.files if f.name.endswith(".sst")} - {
        f.sha256 for f in Place(str(kept)).manifest(1, old["id"]).files
    }
    blob = kept / "p00001/blobs" / min(fresh)
    if harm == "missing":
        blob.unlink()
    elif harm == "torn":
        blob.write_bytes(blob.read_bytes()[:-1])
    elif harm == "changed":
        raw = bytearray(blob.read_bytes())
        raw[len(raw) // 2] ^= 1
        blob.write_bytes(raw)
    else:
        manifest = kept / f"p00001/{new['id']}.json"
        manifest.write_bytes(manifest.read_bytes()[: harm.count("x") + 200])
    back = restored(str(kept), tmp_path / "b")
    assert back["ids"] == {"0": new["id"], "1": old["id"], "2": new["id"]}
    assert len(back["problems"]) == 1 and not back["failed"]
    assert offsets(tmp_path / "b") == {**offsets(world.data), "1": was["1"]}
    # that one and no other: nothing is restored instead
    if harm != "manifest":
        asked = restored(str(kept), tmp_path / "c", new["id"])
        assert asked["failed"] == [1] and not store_path(tmp_path / "c/state", 1).exists()
    shutil.rmtree(kept / "p00001/blobs")
    nothing = restored(str(kept), tmp_path / "d")
    assert nothing["failed"] == [1] and nothing["partitions"] == [0, 2]


def test_an_interrupted_upload_harms_nothing(
    world: World, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = snapshot(world.data, url, 1)
    more(world, 3)
    with monkeypatch.context() as patch:
        real, calls = Place.put_blob, itertools.count()

        def failing(self: Place, *args: object) -> None:
            if next(calls) >= 1:
                raise SnapshotsUnavailable("the network is gone")
            real(self, *args)  # type: ignore[arg-type]

        patch.setattr(Place, "put_blob", failing)
        with pytest.raises(SnapshotsUnavailable):
            snapshot(world.data, url, 1)
    assert Place(url).ids(0) == [old["id"]]
    assert restored(url, tmp_path / "b")["ids"] == dict.fromkeys("012", old["id"])
    assert not [x for x in (world.data / "snapshots").iterdir() if x.is_dir()]
    assert snapshot(world.data, url, 1)["deleted"]
    assert not restored(url, tmp_path / "c")["problems"]
    assert diff(Stores.of(world.data), Stores.of(tmp_path / "c"))["ok"]


def test_an_interrupted_restore_goes_on_where_it_was(
    world: World, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(world.data, str(kept), None)
    place, directory = Place(str(kept)), tmp_path / "b/state"
    files = len(place.manifest(0, place.ids(0)[0]).files)
    real, fetched = Place.get_blob, []

    def get(self: Place, partition: int, sha256: str, target: Path) -> None:
        if limit is not None and len(fetched) >= limit:
            target.write_bytes(b"half")
            raise SnapshotsUnavailable("the network is gone")
        fetched.append(sha256)
        real(self, partition, sha256, target)

    monkeypatch.setattr(Place, "get_blob", get)
    limit: int | None = 2
    with pytest.raises(SnapshotsUnavailable):
        restore_partition(place, 0, directory)
    assert not store_path(directory, 0).exists() and restoring_path(directory, 0).exists()
    limit = None
    assert restore_partition(place, 0, directory).manifest
    assert len(fetched) <= files  # nothing came twice
    assert not restoring_path(directory, 0).exists()
    again = restore_partition(place, 0, directory)
    assert again.manifest is None and "already" in again.problems[0]


def test_manifests_of_other_versions_are_refused(world: World, kept: Path) -> None:
    done = snapshot(world.data, str(kept), None)
    path = kept / f"p00000/{done['id']}.json"
    good = json.loads(path.read_text())
    for change, word in (
        ({"snapshot_format": 2}, "upgrade stream-dmgin"),
        ({"state_format": 99}, "upgrade stream-dmgin"),
        ({"snapshot_format": 0}, "older than"),
        ({"snapshot_format": None}, "no format version"),
        ({"users": good["users"] + 1}, "checksum"),
        ({"checksum": "0"}, "checksum"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(FormatError, match=word):
            Place(str(kept)).manifest(0, done["id"])
    del good["checksum"]
    for raw in (json.dumps(good), "", "[1]", "{", json.dumps({"checksum": 1})):
        path.write_text(raw)
        with pytest.raises(FormatError):
            Place(str(kept)).manifest(0, done["id"])
    assert sweep(Place(str(kept)), 0) == 0  # what can't be read might refer to anything
    escape = Manifest.decode((kept / f"p00001/{done['id']}.json").read_bytes(), "x")
    bad = Manifest(**{**{f: getattr(escape, f) for f in escape.__struct_fields__}, "groups": escape.groups})
    for name in ("../x", "", ".."):
        files = tuple(type(f)(name, f.sha256, f.size) for f in bad.files[:1])
        raw_bad = Manifest(**{**{f: getattr(bad, f) for f in bad.__struct_fields__}, "files": files}).encode()
        with pytest.raises(FormatError, match="outside"):
            Manifest.decode(raw_bad, "x")


def test_locations_that_can_not_be_used(world: World, tmp_path: Path) -> None:
    for url, word in (("nothing://x", "nothing"), ("s3://bucket/path", r"s3")):
        try:
            Place(url)
        except Exception as e:
            assert type(e).__name__ == "ConfigError" and word in str(e)
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotsUnavailable):
        snapshot(world.data, str(tmp_path / "file" / "below"), None)
    with pytest.raises(InputError, match="no good snapshot"):
        restored(str(tmp_path / "nowhere"), tmp_path / "b")


def cli(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict, str]:
    with pytest.raises(SystemExit) as e:
        main(["state", *map(str, args), "-o", "json"])
    out = capsys.readouterr()
    return int(e.value.code or 0), json.loads(out.out) if out.out else {}, out.err


def test_the_verbs(world: World, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, dry, _ = cli(capsys, "snapshot", "--data-dir", world.data, "--to", kept, "--dry-run")
    assert code == 0 and dry["bytes_uploaded"] == dry["bytes"] and not kept.exists()
    code, taken, _ = cli(capsys, "snapshot", "--data-dir", world.data, "--to", kept, "--keep", 3)
    assert code == 0 and {"id", "bytes", "bytes_uploaded", "offsets"} <= taken.keys()
    assert cli(capsys, "snapshot", "--data-dir", world.data)[0] == 2  # where to?
    assert cli(capsys, "snapshot", "--data-dir", tmp_path / "nothing", "--to", kept)[0] == 2
    code, listed, _ = cli(capsys, "snapshots", "--from", kept)
    assert code == 0 and [s["id"] for s in listed["snapshots"]] == [taken["id"]] and listed["snapshots"][0]["whole"]
    b = tmp_path / "b"
    code, would, _ = cli(capsys, "restore", "--data-dir", b, "--from", kept, "--dry-run")
    assert code == 0 and would["partitions"] == [0, 1, 2] and not (b / "state").exists()
    assert cli(capsys, "restore", "--data-dir", b, "--from", kept)[0] == 0  # an empty one: nothing to ask
    assert cli(capsys, "diff", world.data, b)[0] == 0
    code, text, err = cli(capsys, "restore", "--data-dir", b, "--from", kept)
    assert code == 2 and "p00000, p00001, p00002" in err and "--yes" in err
    more(world, 2)
    code, found, _ = cli(capsys, "diff", world.data, b)
    assert (
        code == 1 and found["differing"] > 0 and found["offsets"]["0"]["clicks"][0] > found["offsets"]["0"]["clicks"][1]
    )
    code, taken, _ = cli(capsys, "snapshot", "--data-dir", world.data, "--to", kept)
    assert cli(capsys, "diff", world.data, kept)[0] == 0
    assert cli(capsys, "diff", f"{kept}#{listed['snapshots'][0]['id']}", world.data)[0] == 1
    assert cli(capsys, "diff", world.data, tmp_path / "nothing")[0] == 2
    # one partition
    code, one, _ = cli(capsys, "restore", "--data-dir", b, "--from", kept, "--partition", 2, "--yes")
    assert code == 0 and one["partitions"] == [2] and one["replaces"] == [str(store_path(b / "state", 2))]
    assert offsets(b)["2"] == offsets(world.data)["2"] and offsets(b)["1"] != offsets(world.data)["1"]
    # a store that a worker has open is not touched
    engine = Stores.of(b).open(0, read_only=False)
    assert cli(capsys, "restore", "--data-dir", b, "--from", kept, "--yes")[0] == 3
    engine.close()
    assert cli(capsys, "restore", "--data-dir", b, "--from", kept, "--yes")[0] == 0
    assert cli(capsys, "diff", world.data, b)[0] == 0
    code, compacted, _ = cli(capsys, "compact", "--data-dir", b)
    assert code == 0 and [p["partition"] for p in compacted["partitions"]] == [0, 1, 2]
    assert cli(capsys, "diff", world.data, b)[0] == 0
    assert sorted(x.name for x in (b / "state").glob("re*") if x.is_dir()) == []


def test_diff_finds_users(world: World, kept: Path, tmp_path: Path) -> None:
    snapshot(world.data, str(kept), None)
    restored(str(kept), tmp_path / "b")
    world.write([("clicks", {"user_id": "stranger", "item_id": "i1", "ts": 1_760_000_000_000})])
    world.fold()
    a, b = Stores.of(world.data), Stores.of(tmp_path / "b")
    assert (diff(a, b)["missing"], diff(a, b)["extra"]) == (1, 0)
    assert (diff(b, a)["missing"], diff(b, a)["extra"]) == (0, 1)
    assert diff(b, a)["examples"]["extra"] == ["stranger"]
    shutil.rmtree(store_path(tmp_path / "b/state", 1))
    assert diff(a, b)["missing"] > 1 and diff(a, b)["offsets"]["1"]["clicks"][1] is None


def test_rebuild_is_the_same_fold(world: World, kept: Path, tmp_path: Path) -> None:
    shutil.copytree(world.data, tmp_path / "before")
    snapshot(world.data, str(kept), None)
    more(world, 4)
    shutil.copytree(world.data, tmp_path / "after")
    world.write(random_log(random.Random(5), SHAPE))  # not folded: rebuild stops where the store was
    stores = Stores.of(world.data)
    with open_log(world.url) as log:
        whole = rebuild(stores, 0, log)
        assert whole["from"] == "log" and whole["users"] == whole["users_before"]
        tail = rebuild(stores, 1, log, Place(str(kept)))
        assert tail["from"] != "log" and 0 < tail["records"] < whole["records"] + tail["records"]
        assert diff(Stores.of(tmp_path / "after"), stores)["ok"]
        for p in (0, 1):
            engine = stores.open(p)
            assert engine.get(SIDE_ROW[0]) == SIDE_ROW[1]
            engine.close()
        # a store that a worker has is not touched
        engine = world.engine(2)
        with pytest.raises(StoreBusy):
            rebuild(stores, 2, log)
        engine.close()
        # a snapshot that is ahead of the store is of no use; the log is
        shutil.rmtree(stores.path(2))
        shutil.copytree(store_path(tmp_path / "before/state", 2), stores.path(2))
        more_kept = str(kept) + "-2"
        snapshot(tmp_path / "after", more_kept, None)
        behind = rebuild(stores, 2, log, Place(more_kept))
        assert behind["from"] == "log" and "ahead" in behind["problems"][0]
        # one that can't be opened is set aside
        for f in stores.path(2).glob("MANIFEST*"):
            f.write_bytes(b"rubbish")
        aside = rebuild(stores, 2, log, Place(str(kept)))
        assert Path(aside["set_aside"]).exists() and aside["from"] != "nothing"
    assert diff(Stores.of(tmp_path / "before"), stores)["offsets"].keys() == {"0", "1"}


def test_a_store_that_lost_its_current_is_damaged_not_empty(world: World) -> None:
    """RocksDB would begin an empty store over its files, and whoever looks would see fewer users, not a failure."""
    from stream_dmgin.errors import StreamDmginError
    from stream_dmgin.state.ops.verify import verify

    stores = Stores.of(world.data)
    (stores.path(1) / "CURRENT").unlink()
    assert stores.present() == [0, 1, 2]
    with open_log(world.url) as log:
        for attempt in (lambda: stores.open(1), lambda: stores.open(1, read_only=False), lambda: verify(stores, log)):
            with pytest.raises(StreamDmginError, match=r"damaged.*state rebuild --partition 1"):
                attempt()
        assert Path(rebuild(stores, 1, log)["set_aside"]).exists()
    assert stores.present() == [0, 2]  # the next worker folds it again


def test_rebuild_without_its_log(world: World, tmp_path: Path) -> None:
    from stream_dmgin.errors import StreamDmginError
    from stream_dmgin.log.base import TopicInfo

    with open_log(f"file:{tmp_path / 'another'}") as log:
        log.create(TopicInfo(t, PARTITIONS) for t in TOPICS)
        with pytest.raises(StreamDmginError, match="another log"):
            rebuild(Stores.of(world.data), 0, log)
    stores = Stores.of(world.data)
    assert sorted(stores.present()) == [0, 1, 2] and not list(stores.directory.glob("rebuilding-*"))


def test_group_maps_that_no_manifest_names_go(world: World, url: str, tmp_path: Path) -> None:
    done = snapshot(world.data, url, 1)
    place, other = Place(url), tmp_path / "other"
    mine = place.manifest(0, done["id"]).groups.sha256
    assert set(place.group_maps()) == {f"{mine}.parquet"}
    other.write_bytes(b"an older map")
    place.put_groups("a" * 64, other)
    assert snapshot(world.data, url, None)["groups_deleted"] == []  # nothing is deleted without --keep
    assert snapshot(world.data, url, 1)["groups_deleted"] == ["a" * 64]
    assert set(place.group_maps()) == {f"{mine}.parquet"}
    assert not restored(url, tmp_path / "b")["problems"]
    # one that is named between the look at the manifests and the deletion is put back
    place.put_groups("a" * 64, other)
    newest = place.manifest(0, place.ids(0)[0])

    class Late(Place):
        def delete_groups(self, sha256: str) -> None:
            super().delete_groups(sha256)
            groups = type(newest.groups)("m", "a" * 64, other.stat().st_size)
            fields = {f: getattr(newest, f) for f in newest.__struct_fields__}
            self.write_manifest(Manifest(**{**fields, "id": "late", "groups": groups}))

    assert sweep_maps(Late(url), set()) == [] and f"{'a' * 64}.parquet" in place.group_maps()
    if "://" not in url:
        (Path(url) / "p00000" / "torn.json").write_text("{")
        place.delete_manifest(0, "late")
        assert sweep_maps(place, set()) == []  # what can't be read might name any


def test_a_location_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotsUnavailable, match="is a file"):
        Place(str(tmp_path / "file")).partitions()
