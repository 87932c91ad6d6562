"""What a command prints where nobody watches: tables in full, one JSON document."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from stream_dmgin.cli import main as entry
from stream_dmgin.cli.common import Context, common_options, table

ROWS = [
    {"model": f"a-long-name-of-a-model-{k}", "difference": "+0.0036 [-0.0111, +0.0132]", "auc": 0.75123}
    for k in range(2)
]


@click.command()
@common_options
def command(ctx: Context) -> None:
    """Print."""
    ctx.emit(
        {"rows": ROWS},
        lambda d: table([{**r, **{f"{k}-{i}": v for i in range(2) for k, v in r.items()}} for r in d["rows"]]),
    )


def test_tables_that_go_to_a_pipe_break_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    said = CliRunner().invoke(command).output
    assert said.count("+0.0036 [-0.0111, +0.0132]") == 6 and len(said.splitlines()) == 3
    assert json.loads(CliRunner().invoke(command, ["-o", "json"]).output)["rows"] == ROWS


@pytest.mark.parametrize("error", [IsADirectoryError, NotADirectoryError, FileExistsError])
def test_a_path_of_the_wrong_kind_is_named(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**rest: object) -> None:
        raise error(21, "Is a directory", "out.part", None, "out")

    monkeypatch.setattr(entry.cli, "main", fails)
    with pytest.raises(SystemExit) as e:
        entry.main(["lag"])
    assert e.value.code == 2 and capsys.readouterr().err == "stream-dmgin: out: Is a directory: give another path\n"
