"""The figures of the report's page: what is drawn is Vega-Lite, so that every mark answers on hover.

A figure is a few panels beside each other, as many as fit the width of the screen. A panel is as wide as its place.
Colours are names of the page's style (`--ink`), which the page's script replaces, by day and by night.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import polars as pl

FONT_SIZE = 12
ACCURACY = ("accuracy", "accuracy", ".3f")  # in a tooltip
CATEGORIES = 7  # colours that can be told apart
# What matters most comes first: methods that share a colour are not drawn in one figure.
_METHOD_COLORS = {
    "samples": "--c1",
    "selected": "--c5",
    "zoo": "--ink",
    "decoded_noise": "--c6",
    "layer_noise": "--c2",
    "best_model": "--c3",
    "anchors": "--c3",
    "random_init": "--c4",
    "flat_noise": "--c4",
    "transfer": "--c7",
    "distilled_init": "--c7",
}
_DIGITS = 5  # significant ones of a number in the page


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a legend: a name, a colour of the page's style, and a shape of Vega's."""

    name: str
    color: str
    shape: str = "circle"
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel of a figure: its title, its Vega-Lite and its data."""

    title: str
    spec: dict[str, Any]
    data: pl.DataFrame


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: Its identifier.
        title: What it shows.
        note: How to read it.
        panels: The panels, in order.
        legend: What colours and shapes mean.
        columns: Panels beside each other on a wide screen; 0 lets their number decide.
    """

    name: str
    title: str
    note: str
    panels: Sequence[Panel]
    legend: Sequence[LegendEntry] = field(default=())
    columns: int = 0

    @property
    def across(self) -> int:
        """Panels beside each other on a wide screen."""
        return self.columns or (len(self.panels) if len(self.panels) <= 4 else 4 if len(self.panels) % 4 == 0 else 3)


def chart_panel(title: str, data: pl.DataFrame, layers: Sequence[alt.Chart], height: int) -> Panel:
    """Build a panel of layers that share its data.

    Args:
        title: What the panel is about.
        data: A row a mark.
        layers: Charts without data of their own.
        height: Pixels.
    """
    chart = alt.layer(*layers, data=alt.NamedData("data")).properties(width="container", height=height)
    spec = chart.to_dict()
    for extra in ("config", "$schema"):
        spec.pop(extra, None)
    return Panel(title, spec, data)


def tell(*columns: str | tuple[str, str] | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Return the tooltip: columns, each as its name, or as (name, title), or as (name, title, number format)."""
    told = []
    for column in columns:
        name, title, form = (*((column,) if isinstance(column, str) else column), "", "")[:3]
        options: dict[str, Any] = {"format": form} if form else {}
        title = title or name.replace("_", " ")
        kind: Literal["quantitative", "nominal"] = "quantitative" if form else "nominal"
        told.append(alt.Tooltip(field=name, type=kind, title=title, **options))
    return told


def method_entries(methods: Iterable[str]) -> list[LegendEntry]:
    """Return entries for methods whose colours are the same in every figure; at most one a colour."""
    entries: dict[str, LegendEntry] = {}
    for method in sorted(methods, key=lambda name: list(_METHOD_COLORS).index(name) if name in _METHOD_COLORS else 99):
        color = _METHOD_COLORS.get(method)
        if color is not None:
            entries.setdefault(color, LegendEntry(method, color))
    return list(entries.values())


def axis_x(name: str, title: str, ticks: Sequence[float] = (), **scale: Any) -> alt.X:
    """Return a quantitative x axis, with ticks at some values if any are given."""
    axis = alt.Axis(values=list(ticks), format="d") if ticks else alt.Axis(grid=scale.get("type") != "log")
    return alt.X(field=name, type="quantitative", title=title, scale=alt.Scale(**scale), axis=axis)


def axis_y(name: str, title: str | None, **scale: Any) -> alt.Y:
    """Return a quantitative y axis."""
    axis = alt.Axis(grid=scale.get("type") != "log")
    return alt.Y(field=name, type="quantitative", title=title, scale=alt.Scale(**scale), axis=axis)


def color_by(name: str, entries: Iterable[LegendEntry]) -> alt.Color:
    """Colour by a column of names; the legend is the page's."""
    entries = list(entries)
    scale = alt.Scale(domain=[entry.name for entry in entries], range=[entry.color for entry in entries])
    return alt.Color(field=name, type="nominal", scale=scale, legend=None)


def fill_by(name: str, entries: Iterable[LegendEntry]) -> alt.Fill:
    """Fill by a column of names, in the colours of `color_by`."""
    entries = list(entries)
    scale = alt.Scale(domain=[entry.name for entry in entries], range=[entry.color for entry in entries])
    return alt.Fill(field=name, type="nominal", scale=scale, legend=None)


def shape_by(name: str, entries: Iterable[LegendEntry]) -> alt.Shape:
    """Shape by a column of names; the legend is the page's."""
    entries = list(entries)
    scale = alt.Scale(domain=[entry.name for entry in entries], range=[entry.shape for entry in entries])
    return alt.Shape(field=name, type="nominal", scale=scale, legend=None)


def to_columns(frame: pl.DataFrame) -> dict[str, list[Any]]:
    """Return a frame by columns for JSON: numbers with five digits, null where they are not finite."""
    return {
        name: [_shorten(value) for value in frame[name].to_list()]
        if frame[name].dtype.is_float()
        else frame[name].to_list()
        for name in frame.columns
    }


def _shorten(value: float | None) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None


def name_categories(names: Sequence[str]) -> list[LegendEntry]:
    """Give each name a colour of the palette, if there are enough."""
    return [LegendEntry(name, f"--c{place % CATEGORIES + 1}") for place, name in enumerate(names)]


def list_data(figures: Iterable[Figure]) -> Mapping[str, dict[str, Any]]:
    """Return the specs and the data of all panels, by their identifiers in the page."""
    return {
        f"{figure.name}-{place}": {"spec": panel.spec, "data": to_columns(panel.data)}
        for figure in figures
        for place, panel in enumerate(figure.panels)
    }
