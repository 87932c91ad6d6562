"""The demo's live view: one screen, redrawn four times a second, about 24 lines high and 80 or more columns wide."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream_dmgin.demo.tally import Example, Quality, Tally

BARS = " ▁▂▃▄▅▆▇█"
RATE_S = 1.0  # a rate is measured over this
KEPT = 24  # points of a sparkline


@dataclass
class Rate:
    """A counter read now and then, as a rate with its recent history."""

    name: str
    points: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _last: tuple[float, int] | None = None

    def see(self, now: float, count: int) -> None:
        """The counter stands at `count`."""
        if self._last is None:
            self._last = (now, count)
        elif now - self._last[0] >= RATE_S:
            self.points.append((count - self._last[1]) / (now - self._last[0]))
            self._last = (now, count)

    @property
    def value(self) -> float:
        """The newest rate, per second."""
        return self.points[-1] if self.points else 0.0


@dataclass
class Screen:
    """Everything that is drawn."""

    tally: Tally
    log: str
    names: dict[str, str]  # item id -> name of the shop
    seconds: float
    phase: str = "starting"
    begun: float = field(default_factory=time.monotonic)
    live_since: float | None = None
    history: int = 0
    lag: int = 0
    dead: int = 0
    city_ms: int = 0
    quality: Quality | None = None
    rates: dict[str, Rate] = field(default_factory=lambda: {n: Rate(n) for n in ("events", "requests", "scores")})

    def see(self) -> None:
        """Take the counters of now."""
        now, t = time.monotonic(), self.tally
        for name, count in (("events", sum(t.events.values())), ("requests", t.requests), ("scores", t.scores)):
            self.rates[name].see(now, count)
        if t.example:
            self.city_ms = max(self.city_ms, t.example.city_ms)

    def __rich__(self) -> RenderableType:
        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(ratio=1)
        top.add_column(ratio=1)
        top.add_row(self._flow(), self._latency())
        return Group(self._head(), top, self._quality(), self._example())

    def _head(self) -> RenderableType:
        t = Text()
        t.append(" stream-dmgin ", "bold white on dark_green")
        t.append(f"  {self.phase}", "bold")
        if self.live_since is not None:
            t.append(f"  {min(self.seconds, time.monotonic() - self.live_since):.0f} of {self.seconds:.0f} s")
        if self.city_ms:
            t.append(datetime.fromtimestamp(self.city_ms / 1000, UTC).strftime("   city time %a %H:%M"), "cyan")
        t.append(f"   log {self.log}", "dim")
        t.no_wrap, t.overflow = True, "ellipsis"
        return t

    def _flow(self) -> RenderableType:
        g = Table.grid(padding=(0, 1))
        g.add_column(style="dim", no_wrap=True, min_width=12)
        g.add_column(justify="right", no_wrap=True, min_width=7)
        g.add_column(style="green", no_wrap=True)
        for name in ("events", "requests", "scores"):
            r = self.rates[name]
            g.add_row(f"{name}/s", f"{r.value:,.0f}", sparkline(list(r.points)))
        g.add_row("history", f"{self.history:,}", Text("before the demo", "dim"))
        waiting = self.tally.unanswered()
        g.add_row("lag", f"{self.lag:,}", Text(f"{waiting} requests open", "dim"))
        g.add_row("dead letters", Text(f"{self.dead:,}", "red" if self.dead else "default"), "")
        return Panel(g, title="click to score", title_align="left", border_style="dim", height=8)

    def _latency(self) -> RenderableType:
        now = time.monotonic()
        ms = np.array([m for when, m in list(self.tally.recent) if now - when < 10])
        g = Table.grid(padding=(0, 1))
        g.add_column(style="dim", no_wrap=True)
        g.add_column(justify="right", no_wrap=True, min_width=8)
        g.add_column(style="green", no_wrap=True)
        if not len(ms):
            return Panel(Text("no score yet", "dim"), title="latency", title_align="left", border_style="dim", height=8)
        for name, q in (("p50", 50), ("p90", 90), ("p99", 99)):
            v = float(np.percentile(ms, q))
            g.add_row(name, f"{v:,.1f} ms", bar(v / 100, 17))
        edges = np.array([0, 2, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250, 1e12])
        g.add_row("spread", "", sparkline([float(x) for x in np.histogram(ms, edges)[0]]))
        g.add_row("", "", Text("0 ms    10    30    100+", "dim"))
        return Panel(
            g, title="request written → score read, last 10 s", title_align="left", border_style="dim", height=8
        )

    def _quality(self) -> RenderableType:
        q = self.quality
        if q is None or q.auc != q.auc:
            return Panel(
                Text("waiting for clicks", "dim"), title="quality", title_align="left", border_style="dim", height=7
            )
        g = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "right", "left"):
            g.add_column(justify=justify, no_wrap=True)
        g.add_row("", Text("AUC", "dim"), Text("logloss", "dim"), "")
        model = ", ".join(sorted(self.tally.models)) or "model"
        span = max(1e-9, q.oracle_auc - 0.5)
        for name, a, ll, style in (
            ("oracle", q.oracle_auc, q.oracle_logloss, "dim"),
            (model[:28], q.auc, q.logloss, "bold green"),
            ("floor: item CTR", q.floor_auc, q.floor_logloss, "dim"),
        ):
            g.add_row(
                Text(name, style), Text(f"{a:.4f}", style), Text(f"{ll:.4f}", style), bar((a - 0.5) / span, 30, style)
            )
        g.add_row(
            Text(f"closes {q.closed:.0%} of the gap", "green"),
            Text(f"ECE {q.ece:.3f}", "dim"),
            "",
            Text(f"{q.rows:,} shown, {q.clicks:,} clicked", "dim"),
        )
        return Panel(g, title="quality against the truth", title_align="left", border_style="dim", height=7)

    def _example(self) -> RenderableType:
        e = self.tally.example
        if e is None:
            return Panel(
                Text("waiting for the first score", "dim"),
                title="one request",
                title_align="left",
                border_style="dim",
                height=7,
            )
        when = datetime.fromtimestamp(e.city_ms / 1000, UTC).strftime("%a %H:%M")
        return Panel(
            self._candidates(e),
            title=f"one request: {e.user}, {when}, {e.surface}",
            title_align="left",
            border_style="dim",
            height=7,
        )

    def _candidates(self, e: Example) -> RenderableType:
        g = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "left", "right", "left"):
            g.add_column(justify=justify, no_wrap=True)
        g.add_row(Text("best of the shown", "dim"), Text("ctr", "dim"), "", Text("truth", "dim"), "")
        n = min(len(e.labels), len(e.ctr))
        for i in sorted(range(n), key=lambda i: -e.ctr[i])[:4]:
            clicked = Text("clicked", "bold green") if e.labels[i] else Text("")
            g.add_row(
                self.names.get(e.items[i], e.items[i])[:28],
                f"{e.ctr[i]:.3f}",
                bar(e.ctr[i], 24),
                f"{e.p[i]:.3f}",
                clicked,
            )
        return g


def sparkline(values: list[float]) -> str:
    """Values as bars of eight heights, the highest full."""
    top = max(values, default=0.0)
    return "".join(BARS[round(8 * v / top)] if top > 0 else BARS[0] for v in values)


def bar(share: float, width: int, style: str = "green") -> Text:
    """A bar filled to `share` (0 to 1)."""
    n = round(width * min(1.0, max(0.0, share)))
    return Text("━" * n, style).append("╌" * (width - n), "grey35")
