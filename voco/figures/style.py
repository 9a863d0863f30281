"""How every picture looks, of a run and of the page of benchmarks: sizes, colours for the colour-blind, titles.

Colours are of Okabe and Ito (2008), darkened or lightened until they stand out from the ground, and every line also
differs in its dashes. matplotlib is imported when something is drawn, never pyplot: no global state, no display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 1200
DPI = 120
# Pictures are drawn in the colours of LIGHT, no two alike; in a page each becomes the variable of its name.
LIGHT = {
    "ink": "#222222", "muted": "#666666", "faint": "#dddddd", "pale": "#f3f3f3", "paper": "#ffffff",
    "c0": "#0072b2", "c1": "#c65200", "c2": "#00805c", "c3": "#a8487f", "c4": "#8a6d00", "c5": "#2b8fcb",
    "c6": "#4d4d9e", "c7": "#6b6b6b", "bright": "#e69f00",
}  # fmt: skip
DARK = {
    "ink": "#e8ebf2", "muted": "#a3adc0", "faint": "#39404f", "pale": "#232936", "paper": "#171b24",
    "c0": "#5bb5ec", "c1": "#ff9a52", "c2": "#3ccf9f", "c3": "#e39ac5", "c4": "#e6c34a", "c5": "#9ad4f5",
    "c6": "#a9a8f0", "c7": "#b5b5b5", "bright": "#f0b43c",
}  # fmt: skip
INK, MUTED, FAINT, PALE, PAPER, BLUE, VERMILLION, GREEN, PURPLE, _, SKY, _, GREY, ORANGE = LIGHT.values()
YELLOW = "#f0e442"  # on scans alone, where the ground is dark
TITLE, TEXT, NOTE, SMALL = 13, 10.5, 9.5, 9  # sizes of words in points

# line -> (label, colour, dashes)
LINES = {
    "trained": ("trained", BLUE, "solid"),
    "step0": ("own step 0", ORANGE, (0, (3, 1, 1, 1))),
    "untrained": ("untrained networks", GREEN, (0, (6, 2))),
    "histogram": ("HU histogram", VERMILLION, (0, (6, 2, 1, 2))),
    "constant": ("constant guess", INK, (0, (1, 2))),
}


def new_figure(height: float, width: float = WIDTH, dpi: int = DPI) -> Figure:
    """A figure of exactly ``width`` x ``height`` pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=PAPER)


def headline(figure, title: str, subtitle: str = "") -> None:
    """Finding in bold at the top left, and under it what is shown, wrapped to the width."""
    height = figure.get_figheight() * DPI
    subtitle = "\n".join(textwrap.fill(line, 138) for line in subtitle.splitlines())
    figure.text(24 / WIDTH, 1 - 20 / height, title, fontsize=TITLE, fontweight="bold", color=INK, va="top")
    figure.text(24 / WIDTH, 1 - 50 / height, subtitle, fontsize=NOTE, color=MUTED, va="top", linespacing=1.35)


def pixels(figure, left: float, top: float, width: float, height: float):
    """Axes at a place given in pixels from the top left corner."""
    wide, high = figure.get_size_inches() * figure.dpi
    return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))


def grow(figure, pixels: float) -> None:
    """Room below everything that is in a figure so far."""
    old = figure.get_figheight()
    new = old + pixels / figure.dpi
    figure.set_figheight(new)
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((left, 1 - (1 - bottom) * old / new, width, height * old / new))


def plain(axes, *, grid: bool = True) -> None:
    """Only the axes that are read: no box, faint horizontal lines."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(length=0, labelsize=SMALL, colors=MUTED)
    if grid:
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)


def panel_title(axes, text: str, note: str = "") -> None:
    """Bold words above a panel, a quieter line between them and the panel."""
    lift = 20 if note else 7
    axes.text(
        0,
        1,
        text,
        transform=moved(axes.transAxes, axes.figure, 0, lift),
        fontsize=TEXT,
        fontweight="bold",
        color=INK,
        va="bottom",
    )
    axes.text(0, 1, note, transform=moved(axes.transAxes, axes.figure, 0, 6), fontsize=SMALL, color=MUTED, va="bottom")


def moved(transform, figure, right: float, up: float):
    """A transform whose points lie that many points further right and up."""
    from matplotlib.transforms import ScaledTranslation

    return transform + ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans)


def label_right(axes, labels: Sequence[tuple[float, str, str]], *, gap: float = 13.0) -> list:
    """Write labels beside the right edge at their heights, moved apart where they would touch; returns the words.

    Args:
        labels: (height in data units, text, colour).
        gap: least distance in points.
    """
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_figheight() * 72
    wanted = [(value - low) / (high - low) * height for value, _, _ in labels]
    return [
        axes.annotate(
            text,
            xy=(1, (value - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(10, place - (value - low) / (high - low) * height),
            textcoords="offset points",
            fontsize=SMALL,
            color=colour,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )
        for (value, text, colour), place in zip(labels, spread(wanted, gap, 0.0, height))
    ]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places close to those wanted, in the same order, at least ``gap`` apart, and within limits where they fit."""
    order = np.argsort(wanted, kind="stable")
    # least squares with spacing constraints: pool neighbours that are too close around their common mean
    groups: list[list[float]] = []
    for rank, index in enumerate(order):
        groups.append([wanted[index] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (a, m), (b, n) = groups[-2:]
            groups[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    places = [value for value, count in groups for _ in range(count)]
    places = [value + rank * gap for rank, value in enumerate(places)]
    for rank, place in enumerate(places):
        places[rank] = max(place, low + rank * gap)
    for rank, place in enumerate(reversed(places)):
        places[-1 - rank] = min(place, high - rank * gap)
    result = [0.0] * len(places)
    for index, place in zip(order, places):
        result[index] = place
    return result


def grey(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Hounsfield units as shades from 0, black, to 1."""
    return np.clip((hu.astype(np.float32) - window[0]) / (window[1] - window[0]), 0.0, 1.0)


def series(rows: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric in the rows that have it."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean, narrower at the ends."""
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)
