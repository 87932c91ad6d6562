"""The demo's last page: what was measured, what it means, and where to look next."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_dmgin.demo.run import Outcome


def report(o: Outcome) -> RenderableType:
    """The summary as people read it."""
    n, q = o.numbers, o.quality
    g = Table.grid(padding=(0, 2))
    g.add_column(style="dim", no_wrap=True)
    g.add_column()
    g.add_row("log", n["log"])
    g.add_row("history", f"{o.history:,} events folded before")
    g.add_row(
        "live",
        f"{n['events']:,} events ({n['events_per_s']:,.0f}/s), {n['requests']:,} requests, {n['scores']:,} scored",
    )
    g.add_row("latency", f"p50 {_ms(n['p50_ms'])}, p99 {_ms(n['p99_ms'])}, request written to score read")
    g.add_row("dead letters", f"{n['dead_letters']:,}")
    if o.late:
        g.add_row("late", f"{o.late:,} scores came so late that they may know their outcome: not in the quality below")
    quality = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name, justify in (("quality", "left"), ("AUC", "right"), ("logloss", "right"), ("", "left")):
        quality.add_column(name, justify=justify)  # type: ignore[arg-type]
    quality.add_row("oracle", f"{q.oracle_auc:.4f}", f"{q.oracle_logloss:.4f}", Text("the true probabilities", "dim"))
    model = Text(", ".join(o.models), "bold green")
    quality.add_row(model, f"{q.auc:.4f}", f"{q.logloss:.4f}", f"closes {q.closed:.0%} of the gap; ECE {q.ece:.3f}")
    quality.add_row(
        "floor", f"{q.floor_auc:.4f}", f"{q.floor_logloss:.4f}", Text("item CTR alone, from what was visible", "dim")
    )
    return Group(
        Text("\nThe demo is over. ", "bold"), g, Text(), quality, Text(), Text("Where to look next", "bold"), _next(o)
    )


def _next(o: Outcome) -> RenderableType:
    s = o.place.settings
    flags = f" --data-dir {shlex.quote(str(s.data_dir))}"
    prefix = f" --prefix {shlex.quote(s.prefix)}" if s.prefix != "dmgin." else ""
    own = s.log == f"file:{s.data_dir / 'log'}" or o.place.broker is not None  # no need to name the log, or it is gone
    log = "" if own else f" --log {shlex.quote(s.log)}"
    where = f"{flags}{prefix}{log}"
    rows = [
        ("one user's lifelong state, by group", f"stream-dmgin state show u1{where}"),
        ("all of the store", f"stream-dmgin state stats{where}"),
    ]
    if o.place.broker:
        rows.append(("the same on a log that needs no server and stays", "stream-dmgin demo --log file:demo-log"))
    else:
        rows += [
            ("recompute the state from the log and compare", f"stream-dmgin state verify{where}"),
            ("reproduce scores from the log", f"stream-dmgin replay --verify 100{where}"),
            ("one request by hand, explained", f"stream-dmgin score --user u1 --items s1,s2,s3{where}"),
        ]
    rows.append(("logs of worker and simulator, the truth, the group map", f"ls {shlex.quote(str(s.data_dir))}"))
    out = Text()
    for meaning, line in rows:
        out.append(f"  # {meaning}\n", "dim").append(f"  {line}\n")
    return out


def _ms(x: float | None) -> str:
    return "none" if x is None else f"{x:.1f} ms"
