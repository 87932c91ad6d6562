"""Snapshots in an S3-compatible store: a server process on 127.0.0.1 that checks signatures, is slow and fails on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.errors import ConfigError, StreamDmginError
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots import s3
from stream_dmgin.state.snapshots.place import Place, SnapshotsUnavailable
from stream_dmgin.worker import recovery
from stream_dmgin.worker.snapshots import snapshot
from tests.e2e.test_recovery import beside, some
from tests.workers import folded, make_topics, running, settings_of, turn_until, write

pytest.importorskip("obstore", reason="the extra `s3` (obstore) isn't installed")

KEY, SECRET = "a-key", "a-secret-that-is-never-shown"
URL = "s3://backup/stream dmgin/one"


class Server:
    """The process, and what it is told."""

    def __init__(self, root: Path) -> None:
        (root / "backup").mkdir(parents=True)
        script = Path(__file__).parents[1] / "s3_server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(root), KEY, SECRET], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.root = root

    def told(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode())
        answer = urllib.request.urlopen(request, timeout=30).read()
        return json.loads(answer) if answer else None

    def faults(self, **what: float) -> None:
        self.told("/!faults", what)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(s3, "PATIENCE", timedelta(seconds=2))
    monkeypatch.setattr(recovery, "RETRIES_S", (0.05,))
    server = Server(tmp_path / "objects")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "somewhere"),
        ("AWS_ENDPOINT_URL", server.url),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def state(*args: Any, code: int = 0) -> None:
    with pytest.raises(SystemExit) as e:
        main(["state", *map(str, args), "-o", "json"])
    assert int(e.value.code or 0) == code


def test_snapshot_retention_restore_and_a_server_that_fails(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, **{"snapshot.to": URL, "snapshot.every_s": 0})
    make_topics(settings)
    write(settings, some(1))
    with running(settings) as w:  # snapshots beside the fold, as of a running worker
        turn_until(w, folded(w), "the fold")
        w.loop.commit()
        ids = [beside(w, lambda: snapshot(settings.data_dir, URL, 2))["id"]]
        for seed in (2, 3):
            write(settings, some(seed, 100))
            turn_until(w, folded(w), "the fold")
            w.loop.commit()
            server.faults(status=503, next=2)  # tried again
            done = beside(w, lambda: snapshot(settings.data_dir, URL, 2))
            ids.append(done["id"])
            assert done["bytes_uploaded"] < done["bytes"]
        assert [d["id"] for d in done["deleted"]] == ids[:1] * 2  # both partitions'
        server.faults(status=500, next=-1)
        write(settings, some(4, 100))

        def refused() -> str:
            with pytest.raises(SnapshotsUnavailable) as e:
                snapshot(settings.data_dir, URL, 2)
            return str(e.value)

        said = beside(w, refused)  # while the fold goes on
        assert URL in said and "500" in said and SECRET not in said and len(said) < 1000
        turn_until(w, folded(w), "the fold beside a server that fails")
        server.faults(delay_s=0.05)
        done = beside(w, lambda: snapshot(settings.data_dir, URL, 2))
        server.faults()
        ids.append(done["id"])
    place = Place(URL)
    assert place.partitions() == [0, 1] and place.ids(0) == ids[:1:-1]
    used = {f.sha256 for i in place.ids(0) for f in place.manifest(0, i).files}
    assert set(place.blobs(0)) == used  # what no manifest names is gone
    capsys.readouterr()
    state("snapshots", "--from", URL)
    assert [s["id"] for s in json.loads(capsys.readouterr().out)["snapshots"]] == ids[:1:-1]

    other = settings_of(tmp_path, "by-hand")
    state("restore", "--from", URL, "--data-dir", other.data_dir)
    with running(settings):
        pass  # committed
    assert diff(Stores.of(settings.data_dir), Stores.of(other.data_dir))["ok"]

    server.faults(status=503, next=3)
    again = settings_of(tmp_path, "by-itself", **{"snapshot.to": URL, "snapshot.every_s": 0})
    with running(again) as w:  # a worker that lost its disk
        turn_until(w, folded(w), "the tail")
    said = capsys.readouterr().err
    assert all(f"partition {p}: restored from snapshot" in said for p in (0, 1))
    assert diff(Stores.of(settings.data_dir), Stores.of(again.data_dir))["ok"]
    assert server.told("/!requests")["refused"] == 0  # every signature was right


def test_what_is_wrong_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SnapshotsUnavailable, match="NoSuchBucket"):
        Place("s3://mistyped/path").partitions()
    for url in ("s3://", "s3://key:secret@backup/path"):
        with pytest.raises(ConfigError, match="BUCKET/PATH"):
            Place(url)
    with pytest.raises(StreamDmginError, match="missing"):
        Place(URL).manifest(0, "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SnapshotsUnavailable, match="SignatureDoesNotMatch") as e:
        Place(URL).partitions()
    assert "wrong" not in str(e.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server.stop()
    with pytest.raises(SnapshotsUnavailable, match="s3://backup"):
        Place(URL).partitions()
