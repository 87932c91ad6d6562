"""The house: every module imports, every command explains itself, documents and packaging say what the code says."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import stream_dmgin
from stream_dmgin.cli.main import NOUNS, cli
from stream_dmgin.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(stream_dmgin.__path__, "stream_dmgin.")]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    out = [path]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        out += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return out


def test_every_module_imports() -> None:
    for name in modules():
        if not name.endswith("__main__") and name != "stream_dmgin.log.guard":
            importlib.import_module(name)


def test_every_module_says_what_it_is_for() -> None:
    silent = [m for m in modules() if not _source(m).startswith(('"""', "#")) and _source(m).strip()]
    assert not silent


def _source(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def test_every_command_explains_itself() -> None:
    found = commands(cli)
    assert {p[0] for p in found if p} == set(NOUNS)
    for path in found:
        shown = CliRunner().invoke(cli, [*path, "--help"])
        assert shown.exit_code == 0, (path, shown.output)
        assert len(shown.output.split("Options:")[0].strip().splitlines()) >= 2 or not path, (
            f"{path} has no description"
        )


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = ["torch", "numba", "faust", "confluent_kafka", "pyarrow", "rich"]
    code = f"import sys, stream_dmgin.cli.main; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_configuration_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    said = dict(re.findall(r"^\| `([a-z_.0-9]+)` \| (.*?) \|", text, re.M))
    assert said == {s.key: f"`{s.default}`" if s.default != "" else "" for s in SETTINGS}


def test_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service.get("image") or service.get("build"), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        if name != "topics":
            assert service["healthcheck"]["test"][0] == "CMD"
    volumes = {v.partition(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])}
    assert volumes == set(compose["volumes"])
    runner = CliRunner()
    for name in ("topics", "worker"):
        verbs = [w for w in compose["services"][name]["command"] if not w.startswith("-") and ":" not in w]
        assert runner.invoke(cli, [*verbs, "--help"]).exit_code == 0


def test_constraints_pin_versions_only() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", x) for x in lines)
    pinned = {re.sub(r"[-_.]+", "-", x.partition("==")[0]).lower() for x in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for x in project["optional-dependencies"].values() for d in x)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=~! ]", d)[0]).lower() for d in wanted}
    assert names - pinned <= {"torch-tensorrt"}  # not on this index: its libraries come from NVIDIA's


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name)
def test_commands_on_pages_parse(page: Path) -> None:
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|\s|/)stream-dmgin (.*)", line):
                words = shlex.split(re.split(r"\s[&|>#;]", found[1] + " ")[0])
                command: click.Command = cli
                context = click.Context(cli)
                while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                    name = words.pop(0)
                    following = command.get_command(context, name)
                    assert following is not None, f"{line}: no {name}"
                    command = following
                assert not isinstance(command, click.Group) or words == ["--help"], line
                known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
                assert {w.partition("=")[0] for w in words if w.startswith("-")} <= known, line
                if "--help" not in words and not any(re.fullmatch("[A-Z_,]+", w) for w in words):
                    command.make_context("stream-dmgin", words)


def test_architecture_names_files_that_exist() -> None:
    named = set(
        re.findall(
            r"`((?:stream_dmgin|bench|topics|models|tests|docs)/[\w./-]+)`",
            (ROOT / "docs" / "architecture.md").read_text(),
        )
    )
    assert named
    assert not [n for n in named if not (ROOT / n).exists()]
