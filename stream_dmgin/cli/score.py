"""`score`: one request by hand."""

from __future__ import annotations

from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, setting_flags, table


@click.command()
@click.option("--user", required=True, metavar="U", help="user id")
@click.option("--items", required=True, metavar="A,B,C", help="candidates, separated by commas")
@click.option("--surface", help="context: where it would be shown")
@click.option("--page", metavar="ITEM", help="context: the item on whose page they would stand")
@click.option("--lat", type=float, help="context: latitude")
@click.option("--lon", type=float, help="context: longitude")
@click.option("--model", metavar="ID|DIR", help="model that scores [default: demo]")
@click.option(
    "--groups-shown",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="groups in the explanation of each item",
)
@common_options
@setting_flags(model="worker.model")
def command(
    ctx: Context, user: str, items: str, surface: str | None, page: str | None, lat: float | None, lon: float | None, model: str | None,
    groups_shown: int,
) -> None:  # fmt: skip
    """Score candidates for a user as a worker would now, and say which groups of the user's life made the score.

    Reads the store of a running or a stopped worker (what was committed) and writes nothing. The effect of a group is the
    score minus what it would be without that group.
    """
    from stream_dmgin.worker.by_hand import score_by_hand

    candidates = [i for i in items.split(",") if i]
    result = score_by_hand(ctx.settings, user, candidates, lat, lon, surface, page, groups_shown)
    ctx.emit(result, _human)


def _human(d: dict[str, Any]) -> Any:
    from rich.console import Group

    head = f"user {d['user_id']}: {d['events']} events and {d['impressions']} impressions in {d['groups_total']} groups; model {d['model']}"
    rows = [
        {
            "item": i["item_id"],
            "group": str(i["group"]),
            "ctr": i["ctr"],
            "without history": i["ctr_without_groups"],
            "made by groups": "  ".join(f"{g['group']}: {g['effect']:+.4f}" for g in i["groups"]),
        }
        for i in d["candidates"]
    ]
    return Group(head, table(rows))
