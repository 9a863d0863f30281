"""A chart as a list of shapes that becomes SVG in a page, an SVG file or a PDF: one drawing, the same everywhere.

In a page colours are CSS variables, so that a chart follows light, dark and print; in files they are those of light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

# Okabe and Ito (2008), made for the colour-blind, darkened or lightened until they stand out from the page.
LIGHT = {
    "ink": "#1d2330", "muted": "#5b6475", "faint": "#d9dde5", "pale": "#f1f3f7", "paper": "#ffffff",
    "c0": "#0072b2", "c1": "#c65200", "c2": "#00805c", "c3": "#a8487f", "c4": "#8a6d00", "c5": "#2b8fcb",
    "c6": "#4d4d9e", "c7": "#6b6b6b",
}  # fmt: skip
DARK = {
    "ink": "#e8ebf2", "muted": "#a3adc0", "faint": "#39404f", "pale": "#232936", "paper": "#171b24",
    "c0": "#5bb5ec", "c1": "#ff9a52", "c2": "#3ccf9f", "c3": "#e39ac5", "c4": "#e6c34a", "c5": "#9ad4f5",
    "c6": "#a9a8f0", "c7": "#b5b5b5",
}  # fmt: skip
SERIES = 8
MARKERS = ("circle", "square", "triangle", "diamond", "down", "left", "right", "bar")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 3", "10 4", "6 2 1 2 1 2")
WIDTH = 420  # every chart: readable on a phone as it is, two or three side by side on a desk
_GLYPH = 0.56  # mean width of a letter, in font sizes


@dataclass(frozen=True)
class Style:
    """How a series looks: never by colour alone."""

    color: str
    marker: str
    dash: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name, the same wherever the same list is used; after eight, colours return with other dashes."""
    found = {}
    for i, name in enumerate(names):
        turn = i // SERIES
        found[name] = Style(f"c{i % SERIES}", MARKERS[(i + turn) % SERIES], DASHES[(i + turn) % SERIES])
    return found


@dataclass
class Chart:
    """Shapes in pixels from the top left corner, with the table of what is shown.

    Attributes:
        name: file name without its ending.
        title: what is shown, for people who hear the page and as the caption.
        note: how to read it.
        columns, rows: the numbers that are drawn, for the CSV beside the figure.
    """

    name: str
    title: str
    height: int
    width: int = WIDTH
    note: str = ""
    columns: Sequence[str] = ()
    rows: list[Sequence[Any]] = field(default_factory=list)
    shapes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def line(self, points, color="ink", width=1.0, dash="", opacity=1.0) -> None:
        """A polyline through (x, y) points."""
        points = [(float(x), float(y)) for x, y in points]
        self.shapes.append(
            ("line", {"points": points, "color": color, "width": width, "dash": dash, "opacity": opacity})
        )

    def rect(self, x, y, width, height, color="pale", opacity=1.0) -> None:
        box = {"x": float(x), "y": float(y), "width": float(width), "height": float(height)}
        self.shapes.append(("rect", box | {"color": color, "opacity": opacity}))

    def marker(self, x, y, style: Style | None = None, *, color="ink", shape="circle", size=4.0, hollow=False, tip=""):
        """A marker of a series; hollow for figures that carry a flag."""
        color, shape = (style.color, style.marker) if style else (color, shape)
        place = {"x": float(x), "y": float(y), "size": float(size)}
        self.shapes.append(("marker", place | {"color": color, "shape": shape, "hollow": hollow, "tip": tip}))

    def text(self, x, y, words, *, color="ink", size=12.0, anchor="start", bold=False, room=0.0) -> None:
        """Words with their baseline at y; cut to ``room`` pixels, with the whole text as a tip."""
        words = str(words)
        shown = fit(words, room, size) if room else words
        place = {"x": float(x), "y": float(y), "words": shown, "size": float(size)}
        tip = words if shown != words else ""
        self.shapes.append(("text", place | {"color": color, "anchor": anchor, "bold": bold, "tip": tip}))

    def stamp(self, words: str) -> None:
        """Words below the chart and in its title that no copy of it can lose."""
        self.title = f"{self.title} ({words})"
        self.height += 18
        self.text(12, self.height - 7, words, color="c1", size=11, bold=True, room=self.width - 24)

    def svg(self, *, inline: bool = True) -> str:
        """The chart as SVG: for a page, or as a file of its own."""
        paint = _variable if inline else LIGHT.__getitem__
        head = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        body = "".join(_SVG[kind](values, paint) for kind, values in self.shapes)
        label = f"<title>{escape(self.title)}</title>"
        if inline:
            return f'<svg class="chart" {head} role="img" aria-label="{escape(self.title, True)}">{body}</svg>'
        ground = f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {head} '
            f'font-family="Helvetica, Arial, sans-serif">{label}{ground}{body}</svg>\n'
        )

    def save(self, folder: Path) -> list[Path]:
        """Write the SVG, the PDF and the CSV of the chart."""
        import csv

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{ending}" for ending in ("svg", "pdf", "csv")]
        paths[0].write_text(self.svg(inline=False), encoding="utf-8")
        self._pdf(paths[1])
        with paths[2].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])
        return paths

    def _pdf(self, path: Path) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans"}):
            # one point a pixel
            figure = Figure(figsize=(self.width / 72, self.height / 72))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set(xlim=(0, self.width), ylim=(self.height, 0))
            axes.axis("off")
            for kind, values in self.shapes:
                _PDF[kind](axes, values)
            figure.savefig(path, format="pdf", metadata={"CreationDate": None})


def fit(words: str, room: float, size: float) -> str:
    """Words cut to what fits into ``room`` pixels."""
    most = max(1, int(room / (_GLYPH * size)))
    return words if len(words) <= most else words[: max(1, most - 1)] + "…"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between two positive numbers."""
    found = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def legend(chart: Chart, names: Sequence[str], look: Mapping[str, Style], x: float, y: float, *, lines=True) -> float:
    """A legend that wraps; returns the y below it."""
    room, at, row = chart.width - 2 * x, x, y
    for name in names:
        needed = 34 + _GLYPH * 12 * len(name) + 12
        if at > x and at + needed > x + room:
            at, row = x, row + 18
        style = look[name]
        if lines:
            chart.line([(at, row - 4), (at + 24, row - 4)], style.color, 2, style.dash)
        chart.marker(at + 12, row - 4, style)
        chart.text(at + 30, row, name, room=x + room - at - 30)
        at += needed
    return row + 14


def _variable(color: str) -> str:
    return f"var(--{color})"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg_line(v: Mapping[str, Any], paint) -> str:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in v["points"])
    dash = f";stroke-dasharray:{v['dash'].replace(' ', ',')}" if v["dash"] else ""
    fade = f";opacity:{v['opacity']:g}" if v["opacity"] != 1 else ""
    style = f"fill:none;stroke:{paint(v['color'])};stroke-width:{v['width']:g}{dash}{fade}"
    return f'<polyline points="{points}" style="{style}"/>'


def _svg_rect(v: Mapping[str, Any], paint) -> str:
    box = f'x="{_n(v["x"])}" y="{_n(v["y"])}" width="{_n(v["width"])}" height="{_n(v["height"])}"'
    return f'<rect {box} style="fill:{paint(v["color"])};fill-opacity:{v["opacity"]:.3g}"/>'


def _svg_text(v: Mapping[str, Any], paint) -> str:
    style = f"fill:{paint(v['color'])};font-size:{v['size']:g}px;text-anchor:{v['anchor']}"
    style += ";font-weight:600" if v["bold"] else ""
    tip = f"<title>{escape(v['tip'])}</title>" if v["tip"] else ""
    return f'<text x="{_n(v["x"])}" y="{_n(v["y"])}" style="{style}">{tip}{escape(v["words"])}</text>'


def _outline(v: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Corners of a marker that is no circle."""
    x, y, s = v["x"], v["y"], v["size"]
    return {
        "square": [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)],
        "triangle": [(x, y - 1.2 * s), (x + 1.1 * s, y + s), (x - 1.1 * s, y + s)],
        "down": [(x, y + 1.2 * s), (x + 1.1 * s, y - s), (x - 1.1 * s, y - s)],
        "diamond": [(x, y - 1.3 * s), (x + 1.3 * s, y), (x, y + 1.3 * s), (x - 1.3 * s, y)],
        "left": [(x - 1.2 * s, y), (x + s, y - 1.1 * s), (x + s, y + 1.1 * s)],
        "right": [(x + 1.2 * s, y), (x - s, y - 1.1 * s), (x - s, y + 1.1 * s)],
        "bar": [(x + i * 1.3 * s, y + j * 0.5 * s) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))],
    }[v["shape"]]  # fmt: skip


def _svg_marker(v: Mapping[str, Any], paint) -> str:
    fill = paint("paper") if v["hollow"] else paint(v["color"])
    style = f"fill:{fill};stroke:{paint(v['color'])};stroke-width:1.6"
    tip = f"<title>{escape(v['tip'])}</title>" if v["tip"] else ""
    if v["shape"] == "circle":
        return f'<circle cx="{_n(v["x"])}" cy="{_n(v["y"])}" r="{v["size"]:g}" style="{style}">{tip}</circle>'
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in _outline(v))
    return f'<polygon points="{points}" style="{style}">{tip}</polygon>'


def _pdf_line(axes, v: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    dash = (0, tuple(float(n) for n in v["dash"].split())) if v["dash"] else "solid"
    x, y = zip(*v["points"]) if v["points"] else ((), ())
    # dashes are in units of the line's width there
    if v["dash"]:
        dash = (0, tuple(n / max(v["width"], 0.1) for n in dash[1]))
    axes.add_line(Line2D(x, y, color=LIGHT[v["color"]], linewidth=v["width"], linestyle=dash, alpha=v["opacity"]))


def _pdf_rect(axes, v: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    place = (v["x"], v["y"])
    axes.add_patch(Rectangle(place, v["width"], v["height"], color=LIGHT[v["color"]], alpha=v["opacity"], linewidth=0))


def _pdf_text(axes, v: Mapping[str, Any]) -> None:
    side = {"start": "left", "middle": "center", "end": "right"}[v["anchor"]]
    weight = "bold" if v["bold"] else "normal"
    # the font of the files is a tenth wider than those of pages
    axes.text(v["x"], v["y"], v["words"].replace("$", r"\$"), fontsize=v["size"] * 0.88, color=LIGHT[v["color"]],
              ha=side, va="baseline", fontweight=weight)  # fmt: skip


def _pdf_marker(axes, v: Mapping[str, Any]) -> None:
    from matplotlib.patches import Circle, Polygon

    looks = {
        "facecolor": LIGHT["paper" if v["hollow"] else v["color"]],
        "edgecolor": LIGHT[v["color"]],
        "linewidth": 1.6,
    }
    shape = Circle((v["x"], v["y"]), v["size"], **looks) if v["shape"] == "circle" else Polygon(_outline(v), **looks)
    shape.set_zorder(3)
    axes.add_patch(shape)


_SVG = {"line": _svg_line, "rect": _svg_rect, "text": _svg_text, "marker": _svg_marker}
_PDF = {"line": _pdf_line, "rect": _pdf_rect, "text": _pdf_text, "marker": _pdf_marker}
