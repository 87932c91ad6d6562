"""A data directory that belongs to another account: one line that names the path, and exit 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stream_dmgin.cli import main as entry
from stream_dmgin.worker import doctor


def test_a_path_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state" / "meta.json"
    path.parent.mkdir()
    path.write_text("{}")
    read = Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self == path:  # tests may run as root, whom no mode keeps out
            raise PermissionError(13, "Permission denied", str(path))
        return read(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SystemExit) as e:
        entry.main(["state", "stats", "--data-dir", str(tmp_path)])
    assert e.value.code == 2
    said = capsys.readouterr().err
    assert str(path) in said and "has no permission" in said and "chown or chmod" in said
    assert said.count("\n") == 1


def test_doctor_names_what_this_account_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state" / "p00001" / "000012.sst"
    file.parent.mkdir(parents=True)
    file.touch()
    assert doctor._refused(tmp_path) is None
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file and access(path, mode))
    assert doctor._refused(tmp_path) == file
