"""How every figure looks: one colour and marker for each composition, axes, and the ways out of matplotlib."""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SIZE = 10.5  # of every text in a figure, in points
INK, MUTED, FAINT, BAND = "#1f2733", "#5b6675", "#d5dae1", "#f3f5f8"
# Okabe and Ito's palette without its yellow, which cannot be seen on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4d4d4d")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h")
Dash = Literal["-", "--", ":", "-."]
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """How a composition is drawn; two compositions differ in at least one of the three."""

    color: str
    marker: str
    dash: Dash


def assign_styles(compositions: Iterable[str]) -> dict[str, Style]:
    """Give each composition its look, by its place in the alphabet, so that all figures agree."""
    return {
        name: Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLORS) % len(DASHES)])
        for i, name in enumerate(sorted(set(compositions)))
    }


def quote(text: str, width: int = 40) -> str:
    """Return a name for matplotlib: shortened in the middle, on one line, a dollar sign being only a dollar sign."""
    text = " ".join(text.split())
    if len(text) > width:
        text = f"{text[: width // 2]}…{text[len(text) - width // 2 + 1 :]}"
    return text.replace("$", r"\$")


def create_figure(width: float, height: float, title: str, note: str = "", handles: Iterable[Line2D] = ()) -> Figure:
    """Create a white Agg figure with a title and a legend above its panels, and a note below.

    Args:
        width: Inches.
        height: Inches.
        title: What is seen.
        note: What the marks mean.
        handles: The entries of the legend.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    handles = list(handles)
    widths = [0.57 + 0.08 * len(str(handle.get_label())) for handle in handles]
    columns = len(handles) if sum(widths) < width else int(width / max(widths))
    # The title belongs to the legend: the layout makes room for a legend outside the panels, but not below a title.
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, columns),
        frameon=False,
        fontsize=SIZE,
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.3,
        title=title,
        title_fontproperties={"size": SIZE, "weight": "bold"},
        alignment="left",
        borderaxespad=0.1,
    ).get_title().set_color(INK)
    if note:
        figure.supxlabel(textwrap.fill(note, int(width * 12)), x=0.01, ha="left", fontsize=SIZE, color=MUTED)
    return figure


def create_message(message: str) -> Figure:
    """Create a figure that says why there is nothing to see."""
    figure = create_figure(8, 1.4, "")
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=SIZE, color=MUTED)
    return figure


def style_axes(axes: Axes, title: str = "") -> None:
    """Remove what carries no data, and set the size of the text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=SIZE, colors=INK, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=SIZE, fontweight="bold", color=INK)


def list_handles(looks: Mapping[str, Style], markers: bool = True, lines: bool = True) -> list[Line2D]:
    """Return the legend's entries for compositions.

    Args:
        looks: The compositions that the figure shows.
        markers: Whether they are drawn as markers.
        lines: Whether they are drawn as lines.
    """
    return [
        Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker if markers else "",
            linestyle=look.dash if lines else "",
            linewidth=1.8,
            label=quote(name),
        )
        for name, look in looks.items()
    ]


def to_png(figure: Figure) -> bytes:
    """Render a figure at 144 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def plot_png(draw: Callable[[], Figure | bytes]) -> bytes:
    """Draw a picture; where that fails, one that says so: a picture is never worth the work that it shows.

    Args:
        draw: makes the figure, or its PNG.
    """
    try:
        drawn = draw()
        return drawn if isinstance(drawn, bytes) else to_png(drawn)
    except Exception as error:  # what matplotlib makes of odd names and numbers is anybody's guess
        return to_png(create_message(quote(f"This picture could not be drawn: {type(error).__name__}: {error}", 100)))


def to_svg(figure: Figure) -> str:
    """Render a figure as SVG with its text as outlines; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mzsane", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
