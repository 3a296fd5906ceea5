"""The HTML page of a report: charts as SVG, and the template."""

import base64
import datetime
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from jaxdepth import plots
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.paper import table_formats
from jaxdepth.commands.report import sections as sections_lib
from jaxdepth.commands.report.sections import Section
from jaxdepth.evaluation.metrics import larger_is_better
from jaxdepth.runtime import versions

GENERATOR = "jaxdepth report"  # in the metadata of the page
# Pages with these may be replaced; the second is an old name of the command.
GENERATORS = (GENERATOR, "jaxdepth experiments.report")
# A placeholder colour that `_inline` replaces by the text colour of the page.
_TEXT = "#010203"


def render(
    *,
    title: str,
    runs: Sequence[Run],
    sections: Sequence[Section],
    tables: dict[str, dict[str, Any]],
    metric: str,
) -> str:
    """The page as HTML. Text from files is escaped.

    Args:
      title: heading of the page.
      runs: runs for the comparison and the curves.
      sections: contents of the section of each run.
      tables: contents of tables.json by folder.
      metric: metric with a curve, beside delta1 and RMSE.
    """
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdepth.commands.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = resources.files("jaxdepth.commands.report") / "templates"
    script = (files / "report.js").read_text("utf-8")
    style = (files / "report.css").read_text("utf-8") + _gradient()
    return env.get_template("report.html").render(
        generator=GENERATOR,
        title=title,
        larger_is_better=", ".join(larger_is_better()),
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
        tables=[
            (folder, contents, table_formats.text_tables(contents))
            for folder, contents in tables.items()
        ],
        comparison=sections_lib.comparison(runs),
        curves=curves(runs, ("rmse", "delta1", metric)),
        sections=sections,
        clouds=[[p.cloud for p in s.pictures.pictures] for s in sections],
        version=versions.version("jaxdepth"),
        date=datetime.date.today().isoformat(),
    )


def _hash(script: str) -> str:
    """The hash of the script for the page's content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _gradient() -> str:
    """CSS with the colour scale of depth, from near to far."""
    import matplotlib

    colours = matplotlib.colormaps[plots.COLOURS]
    stops = (colours(k / 8, bytes=True)[:3] for k in range(9))
    text = ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops)
    return f".scale .depth {{ background: linear-gradient(90deg, {text}); }}\n"


def curves(runs: Sequence[Run], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of runs over the steps: each loss, then metrics of comparable runs.

    Returns: dicts of `svg` and `caption`.
    """
    # Each run has the same colour in all charts.
    colours = {run.workdir.name: f"C{k % 10}" for k, run in enumerate(runs)}
    losses: dict[str, list[Run]] = {}
    for run in runs:
        if run.records:
            losses.setdefault(str(run.flag("loss") or "unknown"), []).append(run)
    charts = [_loss_chart(group, loss, colours) for loss, group in losses.items()]
    charts += [
        _metric_chart(group, metric, conditions, colours)
        for conditions, group in sections_lib.comparable(runs).items()
        for metric in dict.fromkeys(metrics)
    ]
    return [
        {"svg": _inline(figure, f"c{k}-", caption), "caption": caption}
        for k, (figure, caption) in enumerate(charts)
    ]


def _loss_chart(
    runs: Sequence[Run], loss: str, colours: dict[str, str]
) -> tuple[Any, str]:
    """Plot training and validation loss of runs. Returns the figure and its caption."""
    figure, axis = _chart("step", f"loss ({loss})")
    dashed = ""
    for run in runs:
        colour = colours[run.workdir.name]
        step, values = plots.series(run.records, "loss")
        axis.plot(step, plots.smooth(values), color=colour, label=_label(run))
        step, values = plots.series(plots.last_kind(run.evaluations), "loss")
        if len(step):
            dashed = "; dashed: validation loss on the evaluation frames"
            axis.plot(step, values, "o--", color=colour, ms=3, lw=1)
    _legend(figure, runs, total=len(colours))
    return figure, f"Training loss {loss}, smoothed{dashed}."


def _metric_chart(
    runs: Sequence[Run], metric: str, conditions: str, colours: dict[str, str]
) -> tuple[Any, str]:
    """Plot a metric of runs, and that of the mean depth map if the runs share it.

    Returns the figure and its caption.
    """
    figure, axis = _chart("step", sections_lib.with_unit(metric))
    for run in runs:
        entries = plots.last_kind(run.evaluations)
        axis.plot(
            [e["step"] for e in entries],
            np.array([e["metrics"].get(metric) for e in entries], float),
            "o-",
            color=colours[run.workdir.name],
            markersize=3,
            label=_label(run),
        )
    caption = f"{metric} on the evaluation frames: {conditions}"
    level = sections_lib.shared_baselines(runs).get("mean_map", {}).get(metric)
    if level is not None:
        axis.axhline(level, color=_TEXT, linestyle=":", linewidth=1)
        caption += "; dotted: the mean depth map"
    _legend(figure, runs, total=len(colours))
    return figure, f"{caption}."


def _label(run: Run) -> str:
    return plots.plain_text(plots.end(run.name, 40))


def _chart(x_label: str, y_label: str) -> tuple[Any, Any]:
    """A figure and its axes, with text and lines in the text colour of the page."""
    figure = plots.canvas(4.6, 3.2)
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    axis.patch.set_alpha(0)
    axis.set_xlabel(x_label, color=_TEXT)
    axis.set_ylabel(y_label, color=_TEXT)
    axis.tick_params(colors=_TEXT)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25, color=_TEXT)
    for spine in axis.spines.values():
        spine.set_color(_TEXT)
    return figure, axis


def _legend(figure: Any, runs: Sequence[Run], *, total: int) -> None:
    """Add a legend with the names of the runs, if the page has several runs."""
    if total < 2:
        return
    width, height = figure.get_size_inches()
    columns = 1 if max(len(run.name) for run in runs) > 18 else 2
    figure.set_size_inches(width, height + 0.2 * -(-len(runs) // columns))
    figure.legend(
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=_TEXT,
    )


def _inline(figure: Any, prefix: str, label: str) -> Markup:
    """A figure as inline SVG, with unique ids, the page's text colour and a label."""
    text = plots.rendered(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = text.replace(_TEXT, "currentColor")
    named = f'<svg role="img" aria-label="{html.escape(label)}"'
    return Markup(text.replace("<svg", named, 1))
