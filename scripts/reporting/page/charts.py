"""The page's charts as Vega-Lite specifications, and the JavaScript that draws them.

A specification has no data and no colours of its own: the page's script gives it the rows of the
section or run it is about, each with its method's colour, so that a method looks the same in all
charts, and the names to hide.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

HOW_TO_INSTALL = "pip install altair vl-convert-python"
HEIGHT = 260
HM_LINES = range(5, 100, 5)


def check_installed() -> None:
    """Check that the libraries of the page's charts are there; ValueError with the command."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--format html needs {error.name}: {HOW_TO_INSTALL}") from None


@cache  # takes seconds, and a server asks again and again
def javascript() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script that sets ``window.vegaEmbed``."""
    import vl_convert
    from altair import SCHEMA_VERSION

    version = ".".join(SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle: Any = vl_convert.javascript_bundle  # whose types demand a snippet
    return str(bundle(vl_version=version))


@cache
def specifications() -> dict[str, dict[str, Any]]:
    """Return every chart of the page by its name."""
    charts = {
        "curves": _few_shot(),
        "base_novel": _base_novel(),
        "source_targets": _against_source("targets", "mean of targets (%)"),
        "source_shifts": _against_source("shifts", "mean of shifts (%)"),
        "accuracies": _accuracies(),
        "time": _costs("minutes", "minutes of training and test (log scale)", "log"),
        "memory": _costs("memory", "peak memory (MB)", "linear"),
        "training_loss": _training("loss", "loss"),
        "training_acc": _training("acc", "accuracy (%)"),
        "confusion": _confusion(),
    }
    return {name: chart.to_dict() for name, chart in charts.items()}


def _rows() -> alt.NamedData:
    import altair as alt

    return alt.NamedData(name="rows")


def _hidden() -> alt.Parameter:
    import altair as alt

    # The page's script sets it when a method is clicked.
    return alt.param(name="hidden", value=[])


def _colour() -> alt.Color:
    import altair as alt

    return alt.Color("colour:N", scale=None, legend=None)


def _axis(field: str, title: str, kind: Any = "linear") -> dict[str, Any]:
    """Return field, title and scale of an axis of numbers that need not start at zero."""
    import altair as alt

    # A logarithm has no zero to leave out, and Vega-Lite warns of the attempt.
    zero: dict[str, Any] = {} if kind == "log" else {"zero": False}
    scale = alt.Scale(type=kind, nice=True, padding=12, **zero)
    return {"shorthand": f"{field}:Q", "title": title, "scale": scale}


def _sized(chart: Any, height: int | alt.Step = HEIGHT) -> Any:
    import altair as alt

    # As wide as the page's column, whatever the screen; rows of a step are as high as they are.
    fit: Any = "fit" if isinstance(height, int) else "fit-x"
    autosize = alt.AutoSizeParams(type=fit, contains="padding")
    return chart.properties(width="container", height=height, autosize=autosize)


def _few_shot() -> Any:
    """Accuracy by shots: a line and a band of one deviation per method, a star at 0 shots."""
    import altair as alt

    base = alt.Chart(_rows()).transform_filter("indexof(hidden, datum.method) < 0")
    # Equal steps per doubling, which a logarithm cannot give 0 shots.
    order = ["0", "1", "2", "4", "8", "16", "32", "64", "all"]
    x = alt.X("shots:O", sort=order, title="images per class", axis=alt.Axis(labelAngle=0))
    y = alt.Y(**_axis("mean", "accuracy (%)"))
    tooltip = ["method:N", "shots:N", "mean:Q", "std:Q", "seeds:Q"]
    bars = (
        # Of no length where there is no deviation: without any rows, Vega would warn.
        base.transform_calculate(
            low="datum.mean - (datum.std || 0)", high="datum.mean + (datum.std || 0)"
        )
        .mark_rule(opacity=0.5)
        .encode(x=x, y=alt.Y("low:Q", title="accuracy (%)"), y2="high:Q", color=_colour())
    )
    lines = base.mark_line().encode(x=x, y=y, color=_colour(), detail="method:N")
    marks = base.mark_point(filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=_colour(),
        tooltip=tooltip,
        shape=alt.condition("datum.zero_shot", alt.value(_STAR), alt.value("circle")),
        size=alt.condition("datum.zero_shot", alt.value(160), alt.value(45)),
    )
    return _sized(alt.layer(bars, lines, marks).add_params(_hidden()))


# Vega has no star of its own; the path is in units of the mark's size.
_STAR = (
    "M0,-1L.2245,-.309L.9511,-.309L.3633,.118L.5878,.809L0,.382"
    "L-.5878,.809L-.3633,.118L-.9511,-.309L-.2245,-.309Z"
)


def _base_novel() -> Any:
    """Novel against base accuracy, with lines of equal harmonic mean."""
    import altair as alt

    # 2bn / (b + n) = h, solved for n; b goes from just above h / 2, where n is 100 or less.
    lines = [
        {"h": h, "b": b, "n": h * b / (2 * b - h)}
        for h in HM_LINES
        for b in range(h // 2 + 1, 101)
        if h * b / (2 * b - h) <= 100
    ]
    found = alt.Chart(_rows()).transform_filter("indexof(hidden, datum.method) < 0")
    x = alt.X("b:Q", title="base accuracy (%)")
    # Only what is near the points: the script sets the domains, and the lines are cut off there.
    domain: dict[str, Any] = {"clamp": False, "zero": False, "nice": False}
    scale_x = alt.Scale(domain=alt.ExprRef("domain_x"), **domain)
    scale_y = alt.Scale(domain=alt.ExprRef("domain_y"), **domain)
    curves = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(strokeDash=[4, 4], strokeWidth=1, opacity=0.6, color="#888", clip=True)
        .encode(x=x.scale(scale_x), y=alt.Y("n:Q", scale=scale_y), detail="h:N")
    )
    names = (
        alt.Chart(alt.Data(values=[{"h": h} for h in HM_LINES]))
        # Where a line leaves the panel at its right, or else at its top.
        .transform_calculate(
            n="datum.h * domain_x[1] / (2 * domain_x[1] - datum.h)", b="domain_x[1]"
        )
        .transform_filter("datum.n >= domain_y[0] && datum.n <= domain_y[1]")
        .transform_calculate(label="'HM ' + datum.h")
        .mark_text(align="right", dx=-2, dy=-6, fontSize=10, color="#888")
        .encode(x=x.scale(scale_x), y=alt.Y("n:Q", scale=scale_y), text="label:N")
    )
    marks = found.mark_point(filled=True, size=90, opacity=0.9).encode(
        x=alt.X("base:Q", scale=scale_x, title="base accuracy (%)"),
        y=alt.Y("novel:Q", scale=scale_y, title="novel accuracy (%)"),
        color=_colour(),
        tooltip=["method:N", "dataset:N", "shots:N", "base:Q", "novel:Q", "hm:Q"],
    )
    domains = [alt.param(name=f"domain_{axis}", value=[0, 100]) for axis in "xy"]
    return _sized(alt.layer(curves, names, marks).add_params(_hidden(), *domains))


def _against_source(axis: str, title: str) -> Any:
    """A mean of other datasets against the accuracy on the source."""
    import altair as alt

    marks = (
        alt.Chart(_rows())
        .transform_filter("indexof(hidden, datum.method) < 0")
        .mark_point(filled=True, size=90, opacity=0.9)
        .encode(
            x=alt.X(**_axis("source", "source (%)")),
            y=alt.Y(**_axis(axis, title)),
            color=_colour(),
            tooltip=["method:N", "shots:N", "source:Q", f"{axis}:Q"],
        )
    )
    return _sized(marks.add_params(_hidden()))


def _accuracies() -> Any:
    """Accuracy by dataset, methods side by side as marks."""
    import altair as alt

    marks = (
        alt.Chart(_rows())
        .transform_filter("indexof(hidden, datum.method) < 0")
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(
            x=alt.X(**_axis("mean", "accuracy (%)")),
            y=alt.Y("dataset:N", sort=None, title=None),
            color=_colour(),
            tooltip=["method:N", "dataset:N", "shots:N", "mean:Q", "std:Q", "seeds:Q"],
        )
    )
    return _sized(marks.add_params(_hidden()), alt.Step(24))


def _costs(field: str, title: str, kind: str) -> Any:
    """What runs cost, a row per method: every run a tick, their median a mark."""
    import altair as alt

    base = (
        alt.Chart(_rows())
        .transform_filter("indexof(hidden, datum.method) < 0")
        .transform_filter(f"isValid(datum.{field}) && datum.{field} > 0")
    )
    x = _axis(field, title, kind)
    y = alt.Y("method:N", sort=None, title=None, axis=alt.Axis(labelLimit=170))
    tooltip = ["method:N", "dataset:N", "shots:N", "seed:N", f"{field}:Q", "device:N"]
    runs = base.mark_tick(opacity=0.5, thickness=1.5).encode(
        x=alt.X(**x), y=y, color=_colour(), tooltip=tooltip
    )
    x["shorthand"] = f"median({field}):Q"
    median = base.mark_point(filled=True, size=70).encode(x=alt.X(**x), y=y, color=_colour())
    return _sized(alt.layer(runs, median).add_params(_hidden()), alt.Step(20))


def _training(field: str, title: str) -> Any:
    """A number of the training log by epoch."""
    import altair as alt

    line = (
        alt.Chart(_rows())
        .mark_line(point=alt.OverlayMarkDef(size=20))
        .encode(
            x=alt.X("epoch:Q", title="epoch", scale=alt.Scale(zero=False, nice=False)),
            y=alt.Y(**_axis(field, title)),
            tooltip=["epoch:Q", f"{field}:Q"],
        )
    )
    return _sized(line, 180)


def _confusion() -> Any:
    """Rows are true classes, columns what they were called."""
    import altair as alt

    cells = (
        alt.Chart(_rows())
        .mark_rect()
        .encode(
            x=alt.X(
                "called:N", sort=None, title="called", axis=alt.Axis(labelAngle=-60, labelLimit=90)
            ),
            y=alt.Y("true:N", sort=None, title="true class", axis=alt.Axis(labelLimit=130)),
            # By opacity, which fades to the page's own colour, light or dark.
            opacity=alt.Opacity(
                "share:Q", title="%", scale=alt.Scale(domain=[0, 100], range=[0.02, 1])
            ),
            tooltip=["true:N", "called:N", alt.Tooltip("share:Q", title="% of its images")],
        )
    )
    return _sized(cells, alt.Step(18))
