"""The page itself: charts as SVG, and the template that holds everything together."""

import base64
import datetime
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from jaxdepth import plots
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.report import sections as sections_lib
from jaxdepth.commands.report.sections import Section
from jaxdepth.runtime import versions

GENERATOR = "jaxdepth report"  # in the page, by which a report is recognised
GENERATORS = (GENERATOR, "jaxdepth experiments.report")
# A colour that nothing is drawn in: it becomes that of the page's text.
_TEXT = "#010203"


def render(
    *,
    title: str,
    runs: Sequence[Run],
    sections: Sequence[Section],
    tables: dict[str, dict[str, Any]],
    metric: str,
) -> str:
    """The page as HTML. All text that comes from files is escaped.

    Args:
      tables: folder -> tables.json.
      metric: the one that has a curve beside delta1 and RMSE.
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
    papers = [
        (
            folder,
            {
                "tables": sections_lib.paper_tables(found),
                **{k: found.get(k, "") for k in ("scale", "command")},
                **{k: found.get(k, []) for k in ("seeds", "notes")},
            },
        )
        for folder, found in tables.items()
    ]
    return env.get_template("report.html").render(
        generator=GENERATOR,
        title=title,
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
        tables=papers,
        comparison=sections_lib.comparison(runs),
        curves=curves(runs, ("rmse", "delta1", metric)),
        sections=sections,
        clouds=[[p.cloud for p in s.pictures.found] for s in sections],
        version=versions.version("jaxdepth"),
        date=datetime.date.today().isoformat(),
    )


def _hash(script: str) -> str:
    """What lets this script run and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _gradient() -> str:
    """The colour scale of depth as a style, near to far."""
    import matplotlib

    colours = matplotlib.colormaps[plots.COLOURS]
    stops = (colours(k / 8, bytes=True)[:3] for k in range(9))
    text = ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops)
    return f".scale .depth {{ background: linear-gradient(90deg, {text}); }}\n"


def curves(runs: Sequence[Run], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of runs on common axes: a loss each, then metrics of runs measured alike.

    Returns: dicts of `svg` and `caption`.
    """
    found = []
    # A run has one colour on all charts; beside others it is named on each.
    colours = {run.workdir.name: f"C{k % 10}" for k, run in enumerate(runs)}
    losses: dict[str, list[Run]] = {}
    for run in runs:
        if run.records:
            losses.setdefault(str(run.flag("loss") or "unknown"), []).append(run)
    for loss, group in losses.items():
        found.append(_loss_chart(group, loss, colours))
    for caption, group in sections_lib.alike(runs).items():
        for metric in dict.fromkeys(wanted):
            found.append(_metric_chart(group, metric, caption, colours))
    for place, chart in enumerate(found):
        chart["svg"] = _inline(chart.pop("figure"), f"c{place}-", chart["caption"])
    return found


def _loss_chart(
    runs: Sequence[Run], loss: str, colours: dict[str, str]
) -> dict[str, Any]:
    figure, axis = _chart("step", f"loss ({loss})")
    validated = False
    for run in runs:
        colour = colours[run.workdir.name]
        step, values = plots.series(run.records, "loss")
        label = plots.plain_text(plots.end(run.name, 40))
        axis.plot(step, plots.smooth(values), color=colour, label=label)
        points = [
            (e["step"], e["loss"])
            for e in plots.last_kind(run.evaluations)
            if e.get("loss") is not None
        ]
        if points:
            validated = True
            axis.plot(*zip(*points, strict=True), "o--", color=colour, ms=3, lw=1)
    _legend(figure, runs, of=len(colours))
    caption = f"Training loss {loss}, smoothed"
    caption += "; dashed: the same loss on the evaluation frames" if validated else ""
    return {"figure": figure, "caption": f"{caption}."}


def _metric_chart(
    runs: Sequence[Run], metric: str, measured: str, colours: dict[str, str]
) -> dict[str, Any]:
    unit = f" [{sections_lib.UNITS[metric]}]" if metric in sections_lib.UNITS else ""
    figure, axis = _chart("step", f"{metric}{unit}")
    for run in runs:
        like = plots.last_kind(run.evaluations)
        values = [e["metrics"].get(metric) for e in like]
        axis.plot(
            [e["step"] for e in like],
            [float("nan") if v is None else v for v in values],
            "o-",
            color=colours[run.workdir.name],
            markersize=3,
            label=plots.plain_text(plots.end(run.name, 40)),
        )
    caption = f"{metric} on the evaluation frames: {measured}"
    level = sections_lib.shared_baselines(runs).get("mean_map", {}).get(metric)
    if level is not None:
        axis.axhline(level, color=_TEXT, linestyle=":", linewidth=1)
        caption += "; dotted: the mean depth map"
    _legend(figure, runs, of=len(colours))
    return {"figure": figure, "caption": f"{caption}."}


def _chart(across: str, up: str) -> tuple[Any, Any]:
    """A figure whose text and lines will have the colour of the page's text."""
    figure = plots.canvas(4.6, 3.2)
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    axis.patch.set_alpha(0)
    axis.set_xlabel(across, color=_TEXT)
    axis.set_ylabel(up, color=_TEXT)
    axis.tick_params(colors=_TEXT)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25, color=_TEXT)
    for spine in axis.spines.values():
        spine.set_color(_TEXT)
    return figure, axis


def _legend(figure: Any, runs: Sequence[Run], *, of: int) -> None:
    """Names of the runs, where the page is about more than one."""
    if of < 2:
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
    """A figure as SVG for a page: ids of its own, in the page's colour, named."""
    text = plots.rendered(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = text.replace(_TEXT, "currentColor")
    named = f'<svg role="img" aria-label="{html.escape(label)}"'
    return Markup(text.replace("<svg", named, 1))
