"""`config show`: every setting, its value, and where it came from."""

from __future__ import annotations

from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table
from stream_dmgin.settings import SETTINGS, masked


@click.group()
def command() -> None:
    """The settings in force."""


@command.command()
@common_options
def show(ctx: Context) -> None:
    """Each setting with its value and its origin; secrets are masked."""
    s = ctx.settings
    rows: list[dict[str, Any]] = [
        {"key": k.key, "value": str(masked(k.key, s[k.key])), "from": s.origin[k.key], "meaning": k.help}
        for k in SETTINGS
    ]
    rows += [
        {"key": f"kafka.{k}", "value": str(masked(k, v)), "from": s.kafka_origin[k], "meaning": "passed to librdkafka"}
        for k, v in s.kafka.items()
    ]
    ctx.emit({"settings": rows}, lambda d: table(d["settings"]))
