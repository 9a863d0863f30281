"""A picture of the page with its words and numbers: one matplotlib figure, shown in the page and saved for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voco.figures import style
from voco.figures.export import save, svg, tip
from voco.figures.style import INK, MUTED, NOTE, PAPER, TEXT
from voco.files import write_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

WIDTH = 420  # every chart: readable on a phone as it is, two or three side by side on a desk
LEFT, RIGHT, BOTTOM = 48, 16, 44
_DPI = 72  # a pixel is a point
_SERIES = [color for name, color in style.LIGHT.items() if name[0] == "c"]
_MARKERS = ("o", "s", "^", "D", "v", "<", ">", "X")
_DASHES = ((), (3, 1.5), (1, 1.5), (4, 1.5, 1, 1.5), (2, 1), (0.5, 1.5), (5, 2), (3, 1, 0.5, 1, 0.5, 1))
_GLYPH = 0.62  # mean width of a letter, in font sizes


@dataclass(frozen=True)
class Style:
    """How a series looks, never by colour alone; what lies on the edge of the axes is not cut."""

    color: str
    marker: str
    dash: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """Of a curve, for ``axes.plot``."""
        return {"color": self.color, "linestyle": (0, self.dash) if self.dash else "solid", "clip_on": False}

    def mark(self, hollow: bool = False, size: float = 8) -> dict[str, Any]:
        """Of a marker, for ``axes.plot``; hollow for figures that carry a flag."""
        face = PAPER if hollow else self.color
        looks = {"markersize": size, "markeredgewidth": 1.6, "markerfacecolor": face, "markeredgecolor": self.color}
        return {"marker": self.marker, "linestyle": "none", "zorder": 3, "clip_on": False} | looks


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name, the same wherever the same list is used; after eight, colours return with other dashes."""
    count, found = len(_SERIES), {}
    for i, name in enumerate(names):
        turned = (i + i // count) % count
        found[name] = Style(_SERIES[i % count], _MARKERS[turned], _DASHES[turned])
    return found


@dataclass
class Chart:
    """A figure with the table of what is shown.

    Attributes:
        name: file name without its ending.
        title: what is shown, for people who hear the page and as the caption.
        note: how to read it.
        columns, rows: the numbers that are drawn, for the CSV beside the figure.
    """

    name: str
    title: str
    figure: Figure
    note: str = ""
    columns: Sequence[str] = ()
    rows: list[Sequence[Any]] = field(default_factory=list)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        width, height = self.figure.get_size_inches() * _DPI
        return float(width), float(height)

    def stamp(self, words: str) -> None:
        """Words below the chart and in its title that no copy of it can lose."""
        self.title = f"{self.title} ({words})"
        style.grow(self.figure, 18)
        width, height = self.size
        write(self.figure, 12, height - 7, words, color=style.VERMILLION, room=width - 24, fontweight="bold")

    def svg(self) -> str:
        """The chart as a part of the page."""
        return svg(self.figure, self.title, page=True)

    def save(self, folder: Path) -> list[Path]:
        """Write the SVG, the PDF and the CSV of the chart."""
        paths = [save(self.figure, folder / f"{self.name}.{kind}", self.title) for kind in ("svg", "pdf")]
        paths.append(folder / f"{self.name}.csv")
        write_rows(paths[-1], [self.columns, *self.rows])
        return paths


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure of a chart, in pixels."""
    return style.new_figure(height, width, _DPI)


def from_corner(figure: Figure) -> Transform:
    """Pixels from the top left corner of a figure, for what belongs to no axes."""
    from matplotlib.transforms import Affine2D, ScaledTranslation

    return Affine2D().scale(1 / _DPI, -1 / _DPI) + figure.dpi_scale_trans + ScaledTranslation(0, 1, figure.transFigure)


def line(figure: Figure, x: Sequence[float], y: Sequence[float], **how) -> None:
    """A line in pixels from the top left corner."""
    from matplotlib.lines import Line2D

    figure.add_artist(Line2D(x, y, transform=from_corner(figure), **how))


def box(figure: Figure, x: float, y: float, width: float, height: float, color: str) -> None:
    """A filled box in pixels from the top left corner, below everything else."""
    from matplotlib.patches import Rectangle

    figure.add_artist(
        Rectangle((x, y), width, height, color=color, linewidth=0, zorder=-1, transform=from_corner(figure))
    )


def framed(
    names: Sequence[str], look: Mapping[str, Style], height: float, words: tuple[str, str], *, right: float = RIGHT,
    lines: bool = True,
) -> tuple[Figure, Axes]:  # fmt: skip
    """A figure with a legend above axes of that height.

    Args:
        names: in the legend.
        look: style of each name.
        height: of the axes in pixels.
        words: names of the axes, x and y.
        right: pixels kept free beside the axes.
        lines: whether the legend shows lines, or markers alone.
    """
    places = _places(list(dict.fromkeys(names)))
    top = places[-1][2] + 34
    figure = new_figure(top + height + BOTTOM)
    for name, x, y in places:
        own = look[name]
        drawn = own.mark() | (own.line | {"linewidth": 2, "markevery": [1]} if lines else {"markevery": [1]})
        line(figure, [x, x + 12, x + 24], [y - 4] * 3, **drawn)
        write(figure, x + 30, y, name, color=INK, size=TEXT, room=WIDTH - 12 - x - 30)
    write(figure, 12, top - 11, words[1])
    write(figure, (LEFT + WIDTH - right) / 2, top + height + 34, words[0], ha="center")
    axes = style.pixels(figure, LEFT, top, WIDTH - LEFT - right, height)
    style.plain(axes)
    axes.tick_params(labelsize=NOTE, pad=5)
    return figure, axes


def _places(names: Sequence[str]) -> list[tuple[str, float, float]]:
    """Where names of a legend stand; it wraps."""
    x, y, found = 12.0, 18.0, []
    for name in names:
        needed = 46 + _GLYPH * TEXT * len(name)
        if x > 12 and x + needed > WIDTH - 12:
            x, y = 12.0, y + 18
        found.append((name, x, y))
        x += needed
    return found


def write(where: Axes | Figure, x: float, y: float, words: str, *, size=NOTE, color=MUTED, room: float = 0, **how):
    """Words with their baseline at y, of a figure in pixels from its top left corner.

    Args:
        where: a figure, or axes with a ``transform``.
        x, y: place.
        words: cut to ``room`` pixels, with the whole text as a tip.
        size: in points.
        color: of the palette.
        room: in pixels, 0 for as much as it takes.
        how: of ``matplotlib.text.Text``.
    """
    shown = fit(str(words), room, size) if room else str(words)
    how = {"transform": from_corner(where.figure)} | how
    artist = where.text(x, y, shown, fontsize=size, color=color, parse_math=False, **how)
    return artist if shown == words else tip(artist, str(words))


def fit(words: str, room: float, size: float) -> str:
    """Words cut to what fits into ``room`` pixels."""
    most = max(1, int(room / (_GLYPH * size)))
    return words if len(words) <= most else words[: max(1, most - 1)] + "…"
