"""`report.json` and `report.html`: one plain page that needs nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stream_dmgin.ab import plots
from stream_dmgin.ab.compare import METRICS, Comparison, gain

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ c.champion }} and {{ c.challengers | join(", ") }}</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap } td:first-child { white-space: normal; overflow-wrap: anywhere }
.wide { overflow-x: auto } @media (max-width: 40em) { th, td { padding: .3em .4em } body { margin: 1em auto } }
th:first-child, td:first-child { text-align: left } .better { color: #1d6b2f } .worse { color: #a3271b } .note { color: #666 }
</style></head><body>
<h1>Comparison over one replay</h1>
<p><strong>{{ c.verdict }}</strong></p>
<p>{{ "{:,}".format(c.rows) }} rows of {{ "{:,}".format(c.users) }} users, {{ "{:,}".format(c.clicks) }} clicks.
Every model saw the same states and counters; an event counted only for requests after it became visible.</p>
<h2>Measures</h2>
<div class="wide"><table><tr><th>model</th>{% for m in metrics %}<th>{{ m }}</th>{% endfor %}</tr>
{% for name, v in c.metrics.items() %}<tr><td>{{ name }}{% if name == c.champion %} (champion){% endif %}</td>
{% for m in metrics %}<td>{{ "%.4f" % v[m] }}</td>{% endfor %}</tr>{% endfor %}</table></div>
<p class="note">auc, gauc (within users, weighted by rows): higher is better. logloss (nats), ece (15 bins): lower is better.
A champion that is exactly calibrated would show an ece of
{{ "%.4f" % c.ece_noise[0] }} to {{ "%.4f" % c.ece_noise[1] }} here (5 to 95 %).</p>
<h2>Differences to {{ c.champion }}</h2>
{% for name, d in c.differences.items() %}<h3>{{ name }}</h3>
<div class="wide"><table><tr><th>measure</th><th>difference</th><th>95 % interval</th><th></th></tr>
{% for m, i in d.items() %}<tr><td>{{ m }}</td><td>{{ "%+.4f" % i.diff }}</td>
<td>{{ "%+.4f" % i.low }} to {{ "%+.4f" % i.high }}</td>
<td class="{{ ["", "better", "worse"][gain(m, i)] }}">
{{ ["not sure", "better", "worse"][gain(m, i)] }}</td></tr>{% endfor %}</table></div>
{{ interval_plots[name] }}{% endfor %}
<p class="note">Paired bootstrap over users: all rows of a user are drawn together, the same users for both models.</p>
<h2>Calibration</h2>
<p>On the dashed line a prediction of 30 % is clicked in 30 of 100 cases; above it more often than said, below it less often.</p>
{{ reliability_plot }}
</body></html>
"""


_COLOURS = {0: plots.GREY, 1: "#1d6b2f", -1: "#a3271b"}  # by `gain`; those of the table's words


def write(c: Comparison, out: Path) -> None:
    """Write both files into `out` (made where it is missing)."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(c.to_json(), indent=1) + "\n")
    (out / "report.html").write_text(html(c))


def html(c: Comparison) -> str:
    """The page. Names of models are escaped; only the plots, which escape theirs, go in as they are."""
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return page.render(
        c=c, metrics=METRICS, gain=gain,
        interval_plots={
            k: Markup(plots.intervals(d, {m: _COLOURS[gain(m, i)] for m, i in d.items()})) for k, d in c.differences.items()
        },
        reliability_plot=Markup(plots.reliability(c.reliability)),
    )  # fmt: skip
