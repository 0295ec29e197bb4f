"""Charts, drawn once by matplotlib: saved as PNG, and embedded in pages as SVG."""

import io
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from carvana.classes import BLUE, ORANGE, Color
from carvana.errors import plural
from carvana.files import replacing

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
SIZE = (10, 6.4)  # inches
PNG_DPI = 110
# Fixed margins: matplotlib's automatic ones take twice the time of everything else.
MARGINS = {"left": 0.07, "right": 0.98, "bottom": 0.06, "top": 0.95, "hspace": 0.25, "wspace": 0.2}
SVG_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "carvana",  # the same chart gives the same file
    "font.sans-serif": "DejaVu Sans",  # instead of naming ten fonts in each text
}
BINS = 20
LOG_MARGIN = 1.15  # factor between the extreme values and the edge of a logarithmic panel


class Panel(NamedTuple):
    """One panel of the training curves."""

    title: str
    columns: dict[str, str]  # label of a line -> its column of the history
    log: bool = False
    complement: bool = False  # draw 1 - value


@dataclass
class Chart:
    """A matplotlib figure, and what a page says about it."""

    figure: Any  # matplotlib.figure.Figure
    description: str = ""  # what a screen reader says
    tooltips: dict[str, list[str]] = field(default_factory=dict)  # id of a line or bar -> texts

    def save_png(self, path: str | Path) -> None:
        """Write the chart as a PNG. Raises UserError if it cannot be written."""
        with replacing(path) as temporary:
            self.figure.savefig(temporary, format="png", dpi=PNG_DPI)

    def to_svg(self) -> str:
        """Return the chart as an SVG element for a page: texts and axes in the page's color."""
        buffer = io.StringIO()
        with _matplotlib().rc_context(SVG_STYLE):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        ElementTree.register_namespace("", SVG)
        ElementTree.register_namespace("xlink", XLINK)
        root = ElementTree.fromstring(buffer.getvalue())
        self._prepare_for_page(root)
        text = ElementTree.tostring(root, encoding="unicode")
        return text.replace("#000000", "currentColor")

    def _prepare_for_page(self, root: ElementTree.Element) -> None:
        """Add role, label and tooltips; remove metadata, and ids that nothing refers to."""
        root.attrib.pop("width")  # the page scales it by its viewBox
        root.attrib.pop("height")
        root.attrib |= {"role": "img", "aria-label": self.description, "fill": "currentColor"}
        for metadata in root.findall(f"{{{SVG}}}metadata"):
            root.remove(metadata)
        for group in root.iter(f"{{{SVG}}}g"):
            identity = group.attrib.pop("id", None)
            if identity is not None:
                _add_tooltips(group, self.tooltips.get(identity, []))


def _matplotlib() -> Any:
    """Import matplotlib only when a chart is drawn: it takes half a second."""
    import matplotlib.figure

    return matplotlib


def _add_tooltips(group: ElementTree.Element, texts: list[str]) -> None:
    """Give each marker of a line, or the only path of a bar, one of the texts."""
    targets = list(group.iter(f"{{{SVG}}}use")) or group.findall(f"{{{SVG}}}path")
    for target, text in zip(targets, texts, strict=False):
        ElementTree.SubElement(target, f"{{{SVG}}}title").text = text


# ---------------------------------------------------------------- training


def training_curves(history: list[dict], size: str) -> Chart:
    """Draw losses, 1 - Dice, learning rate and speed over the epochs.

    Args:
        history: the rows of history.csv.
        size: "HxW" of the network's picture.
    """
    panels = (
        Panel("loss", {"training": "train_loss", "validation": "val_loss"}, log=True),
        Panel(
            "1 - Dice of validation",
            {f"at {size}": "dice", "at full size": "full_dice"},
            log=True,
            complement=True,
        ),
        Panel("learning rate", {"": "learning_rate"}),
        Panel("images per second", {"": "images_per_second"}),
    )
    chart = Chart(_matplotlib().figure.Figure(figsize=SIZE))
    all_axes = chart.figure.subplots(2, 2, gridspec_kw=MARGINS).flat
    last_values = []
    for axes, panel in zip(all_axes, panels, strict=True):
        last_values += _draw_panel(chart, axes, panel, history)
    chart.description = f"Curves over {plural(len(history), 'epoch')}"
    if last_values:
        chart.description += f"; last values: {', '.join(last_values)}"
    return chart


def _draw_panel(chart: Chart, axes: Any, panel: Panel, history: list[dict]) -> list[str]:
    """Draw the lines of a panel; return the last value of each, in words."""
    last_values = []
    for color, (label, column) in zip((BLUE, ORANGE), panel.columns.items(), strict=False):
        rows = [row for row in history if row.get(column) is not None]
        if not rows:
            continue
        epochs = [row["epoch"] for row in rows]
        values = [row[column] for row in rows]
        if panel.complement:
            values = [1 - value for value in values]
        name = f"{panel.title} {label}".strip()
        identity = f"{column}-curve"
        axes.plot(epochs, values, "o-", markersize=3, label=label, color=_rgb(color), gid=identity)
        points = zip(epochs, values, strict=True)
        chart.tooltips[identity] = [f"{name}, epoch {x}: {y:.5g}" for x, y in points]
        last_values.append(f"{name} {values[-1]:.5g}")
    _set_scales(axes, panel)
    axes.set_title(panel.title)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(facecolor="none")
    return last_values


def _set_scales(axes: Any, panel: Panel) -> None:
    """Mark whole epochs only; use a logarithmic scale only if every value is above 0."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    values = [value for line in axes.lines for value in line.get_ydata()]
    if not panel.log:
        _, highest = axes.get_ylim()
        axes.set_ylim(0, 1.05 * highest)
    elif values and min(values) > 0:
        # Set first: matplotlib warns of a logarithmic scale for a single value.
        axes.set_ylim(min(values) / LOG_MARGIN, max(values) * LOG_MARGIN)
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:.3g}")


def _rgb(color: Color) -> tuple[float, ...]:
    """Return a color of levels 0 to 255 as matplotlib takes it."""
    return tuple(level / 255 for level in color)


# ---------------------------------------------------------------- histograms


def histograms(values_by_title: dict[str, list[float]]) -> Chart:
    """Draw how often values occur, up to four titles with theirs. NaN is left out."""
    chart = Chart(_matplotlib().figure.Figure(figsize=SIZE))
    all_axes = chart.figure.subplots(2, 2, gridspec_kw=MARGINS).flat
    medians = []
    for axes, (title, values) in zip(all_axes, values_by_title.items(), strict=False):
        numbers = np.array(values)
        numbers = numbers[np.isfinite(numbers)]
        _draw_histogram(chart, axes, title, numbers)
        if len(numbers):
            medians.append(f"{title} {np.median(numbers):.3g}")
    chart.description = f"Histograms; medians: {', '.join(medians)}"
    return chart


def _draw_histogram(chart: Chart, axes: Any, title: str, values: np.ndarray) -> None:
    counts, edges = np.histogram(values, BINS)
    bars = axes.bar(edges[:-1], counts, 0.95 * np.diff(edges), align="edge", color=_rgb(BLUE))
    for i, bar in enumerate(bars):
        identity = f"{title}-bar-{i}"
        bar.set_gid(identity)
        chart.tooltips[identity] = [f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {counts[i]}"]
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title)
