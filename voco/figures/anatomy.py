"""Pictures of one case: what the network sees, and how it places a crop among the base crops.

Axial slices stand as in radiology: anterior up, the patient's left on the right of the picture. In the canonical volume
rows go toward posterior and columns toward left, so an array slice is shown as it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voco.figures import style
from voco.figures.style import INK, MUTED, ORANGE, SKY, VERMILLION, YELLOW
from voco.short_repr import short_repr

if TYPE_CHECKING:
    import torch

    from voco.geometry import Geometry

_CROP_COLOURS = (ORANGE, SKY, YELLOW, VERMILLION)
_TURNS = ("", "90°", "180°", "270°")
_FLIPS = ("S-I", "A-P", "L-R")


@short_repr
@dataclass(frozen=True)
class SimilarityCase:
    """One query crop of one window and what the network answered.

    Attributes:
        hu: (D, H, W) window in Hounsfield units.
        crop: (d, h, w) the query as cut, Hounsfield units.
        start: (D, H, W) its corner in the window; of another slab, the corner that it would have in this one.
        similarity: (N,) of the query to each base crop; below 0 counts as 0 in the loss.
        labels: (N,) true overlaps.
        name: shown beside the row, e.g. the case id.
    """

    hu: np.ndarray
    crop: np.ndarray
    start: tuple[int, int, int]
    similarity: np.ndarray
    labels: np.ndarray
    name: str = ""


def similarity_map(
    cases: Sequence[SimilarityCase],
    geometry: Geometry,
    hu_window: tuple[float, float],
    *,
    title: str = "",
    note: str = "",
) -> style.Figure:
    """The picture that explains VoCo: slice with grid and crop, the crop, true overlaps, predicted similarities.

    Args:
        cases: one row each.
        geometry: of the method.
        hu_window: (low, high) HU that is black and white.
        title: replaces the finding (how many of the shown queries are placed rightly).
        note: added to the line under the title, e.g. how the cases were chosen.
    """
    edge, gap, left, top = 262, 18, 68, 132
    rows = len(cases)
    figure = style.new_figure(top + rows * (edge + gap) + 58)
    right = sum(_is_right(case) for case in cases)
    style.headline(
        figure,
        title or f"{right} of {rows} crops placed in the right cell of the grid",
        "A random crop (orange) is compared with every base crop of the grid; VoCo trains similarity to equal overlap."
        + (f"\n{note}" if note else ""),
    )
    heads = ("base grid, crop in place", "the crop as cut", "true overlap", "predicted similarity")
    for row, case in enumerate(cases):
        y = top + row * (edge + gap)
        panels = [style.pixels(figure, left + i * (edge + gap), y, edge, edge) for i in range(4)]
        grey = style.grey(case.hu, hu_window)[len(case.hu) // 2]
        _slice(panels[0], grey, grid=geometry)
        _outline(panels[0], case.start, geometry, ORANGE)
        _orientation(panels[0])
        panels[1].imshow(style.grey(case.crop, hu_window)[len(case.crop) // 2], cmap="gray", vmin=0, vmax=1)
        _frame(panels[1], ORANGE)
        _heat(panels[2], grey, case.labels, geometry, case.start)
        _heat(panels[3], grey, case.similarity, geometry, case.start)
        _pick(panels[3], case, geometry)
        if row == 0:
            for panel, words in zip(panels, heads):
                style.panel_title(panel, words)
        middle = panels[0].get_position().y0 + panels[0].get_position().height / 2
        figure.text(30 / style.WIDTH, middle, _short(case.name),
            rotation=90, fontsize=style.NOTE, color=MUTED, ha="center", va="center")  # fmt: skip
    _colour_bar(figure, top + rows * (edge + gap) + 6)
    return figure


def _short(name: str, longest: int = 26) -> str:
    """A name that fits beside its row, start and end kept."""
    return name if len(name) <= longest else f"{name[: longest - 9]}…{name[-8:]}"


def _is_right(case: SimilarityCase) -> bool:
    return int(np.argmax(case.similarity)) == int(np.argmax(case.labels))


def _slice(axes, grey, *, grid=None, numbers: bool = False) -> None:
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlim(-0.5, grey.shape[1] - 0.5)
    axes.set_ylim(grey.shape[0] - 0.5, -0.5)
    axes.set_axis_off()
    if grid is not None:
        for row in range(1, grid.grid[0]):
            axes.axhline(row * grid.crop - 0.5, color="white", linewidth=0.9, alpha=0.75)
        for col in range(1, grid.grid[1]):
            axes.axvline(col * grid.crop - 0.5, color="white", linewidth=0.9, alpha=0.75)
        if numbers:
            for k in range(grid.bases):
                row, col = divmod(k, grid.grid[1])
                place = (col * grid.crop + 0.06 * grid.crop, row * grid.crop + 0.06 * grid.crop)
                axes.text(*place, str(k), color="white", fontsize=style.SMALL, va="top", **_halo())


def _halo() -> dict:
    from matplotlib.patheffects import withStroke

    return {"path_effects": [withStroke(linewidth=2.2, foreground="black", alpha=0.8)]}


def _outline(axes, start, geometry, colour, *, words: str = "", width: float = 2.4) -> None:
    from matplotlib.patches import Rectangle

    corner = (start[2] - 0.5, start[1] - 0.5)
    for line, shade in ((width + 1.6, "black"), (width, colour)):
        axes.add_patch(Rectangle(corner, geometry.crop, geometry.crop, fill=False, edgecolor=shade, linewidth=line))
    if words:
        axes.text(corner[0] + geometry.crop * 0.94, corner[1] + geometry.crop * 0.06, words, color=colour, fontsize=12,
            fontweight="bold", ha="right", va="top", **_halo())  # fmt: skip


def _orientation(axes) -> None:
    for x, y, letter in ((0.5, 0.975, "A"), (0.02, 0.5, "R"), (0.98, 0.5, "L")):
        horizontal = {0.5: "center", 0.02: "left", 0.98: "right"}[x]
        axes.text(x, y, letter, transform=axes.transAxes, color="white", fontsize=style.NOTE, ha=horizontal,
            va="top" if letter == "A" else "center", **_halo())  # fmt: skip


def _frame(axes, colour: str, width: float = 2.4) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(width)


def _heat(axes, grey, values, geometry, start) -> None:
    """Cell values as colour over a dimmed slice, the stronger the larger, and as numbers."""
    from matplotlib import colormaps

    rows, cols = geometry.grid
    table = np.asarray(values, float).reshape(rows, cols)
    _slice(axes, 0.6 * grey)
    colour = colormaps["viridis"](table.clip(0, 1))
    colour[..., 3] = 0.3 + 0.5 * table.clip(0, 1)
    extent = (-0.5, cols * geometry.crop - 0.5, rows * geometry.crop - 0.5, -0.5)
    axes.imshow(colour, extent=extent, interpolation="nearest")
    _slice_grid(axes, geometry)
    for row in range(rows):
        for col in range(cols):
            axes.text((col + 0.5) * geometry.crop - 0.5, (row + 0.5) * geometry.crop - 0.5, f"{table[row, col]:.2f}",
                color="white", fontsize=11 if cols <= 3 else 9, ha="center", va="center", **_halo())  # fmt: skip
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((start[2] - 0.5, start[1] - 0.5), geometry.crop, geometry.crop, fill=False,
        edgecolor=ORANGE, linewidth=1.4, linestyle=(0, (4, 2))))  # fmt: skip


def _slice_grid(axes, geometry) -> None:
    for row in range(1, geometry.grid[0]):
        axes.axhline(row * geometry.crop - 0.5, color="white", linewidth=0.7, alpha=0.6)
    for col in range(1, geometry.grid[1]):
        axes.axvline(col * geometry.crop - 0.5, color="white", linewidth=0.7, alpha=0.6)


def _pick(axes, case, geometry) -> None:
    """Frame the cell that the network picks, and say whether it is the right one."""
    from matplotlib.patches import Rectangle

    right = _is_right(case)
    row, col = divmod(int(np.argmax(case.similarity)), geometry.grid[1])
    corner = (col * geometry.crop - 0.5, row * geometry.crop - 0.5)
    axes.add_patch(
        Rectangle(corner, geometry.crop, geometry.crop, fill=False, edgecolor="white", linewidth=2.6, zorder=5)
    )
    axes.text(corner[0] + geometry.crop * 0.5, corner[1] + geometry.crop * 0.9, "right" if right else "wrong",
        color="white" if right else YELLOW, fontsize=10, fontweight="bold", ha="center", va="bottom", zorder=6,
        **_halo())  # fmt: skip


def _colour_bar(figure, top: int) -> None:
    axes = style.pixels(figure, 68 + 2 * 280, top, 542, 12)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap="viridis", aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.tick_params(length=0, labelsize=style.SMALL, colors=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
    foot = "Axial slices, anterior up, patient's left on the right.\nWhite frame: the network's pick."
    figure.text(
        68 / style.WIDTH, axes.get_position().y1, foot, fontsize=style.NOTE, color=MUTED, va="top", linespacing=1.4
    )


def crops_of_case(
    hu: np.ndarray,
    geometry: Geometry,
    draws: Mapping[str, torch.Tensor],
    hu_window: tuple[float, float],
    *,
    title: str = "",
) -> style.Figure:
    """Contact sheet of one training sample: window and grid, base crops, random crops, all augmented as drawn.

    Shown are central axial slices in the canonical frame after windowing; ``prepare`` of an encoder may still turn axes
    and rescale.

    Args:
        hu: (D, H, W) window in Hounsfield units.
        geometry: of the method.
        draws: of one sample, from ``VoCo3D.sampler``: ``starts``, ``flips``, ``turns``, ``shift``.
        hu_window: (low, high) HU that becomes [0, 1].
        title: replaces the default.
    """
    bases, crops = _augmented(hu, geometry, draws, hu_window)
    labels = _labels(draws["starts"], geometry)
    whole, top = 430, 132
    figure = style.new_figure(top + whole + 66)
    changed = sum(bool(_words(draws, i)) for i in range(len(bases) + len(crops)))
    style.headline(
        figure,
        title or f"One training sample: {len(bases)} base and {len(crops)} random crops, {changed} of them augmented",
        "Under each crop stands what was done to it, on its own: flips (S-I, A-P, L-R), turns, intensity shift.\n"
        "The label of a random crop is its overlap with every base crop.",
    )
    axes = style.pixels(figure, 24, top, whole, whole)
    _slice(axes, style.grey(hu, hu_window)[len(hu) // 2], grid=geometry, numbers=True)
    style.panel_title(axes, "window, base grid, random crops")
    _orientation(axes)
    for k, start in enumerate(draws["starts"].tolist()):
        _outline(axes, start, geometry, _CROP_COLOURS[k % 4], words=f"r{k + 1}")
    _base_sheet(figure, bases, draws, geometry, left=24 + whole + 24, top=top, size=whole)
    _random_sheet(figure, crops, draws, labels, geometry, left=24 + 2 * (whole + 24) - 8, top=top, height=whole)
    foot = "Axial slices, anterior up, patient's left on the right, before any flip or turn."
    figure.text(24 / style.WIDTH, 24 / (top + whole + 66), foot, fontsize=style.NOTE, color=MUTED, va="bottom")
    return figure


def _augmented(hu, geometry, draws, window) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from voco.crops import augment, cut

    starts = torch.cat([geometry.base_starts(), draws["starts"]])[None]
    crops = cut(torch.from_numpy(style.grey(hu, window))[None], starts, geometry.size)[0][:, None]
    seen = augment(crops, draws["flips"], draws["turns"], draws["shift"])[:, 0].numpy()
    return seen[: geometry.bases], seen[geometry.bases :]


def _labels(starts, geometry) -> np.ndarray:
    from voco.crops import overlap_labels

    return overlap_labels(starts, geometry).numpy()


def _words(draws, i: int, width: float = 1e4) -> str:
    """What was done to crop ``i``, in lines of at most ``width`` pixels."""
    flips = [word for word, drawn in zip(_FLIPS, draws["flips"][i].tolist()) if drawn]
    turn, shift = _TURNS[int(draws["turns"][i])], float(draws["shift"][i])
    parts = [*(["flip " + " ".join(flips)] if flips else []), *([turn] if turn else [])]
    parts += [f"shift\u00a0{shift:+.2f}"] if shift else []
    return textwrap.fill(", ".join(parts), max(8, int(width / 6.5)))


def _base_sheet(figure, bases, draws, geometry, *, left, top, size) -> None:
    rows, cols = geometry.grid
    cell_w, cell_h = size / cols, size / rows
    edge = min(cell_w - 8, cell_h - (34 if cols <= 3 else 50))
    for k, crop in enumerate(bases):
        row, col = divmod(k, cols)
        axes = style.pixels(figure, left + col * cell_w, top + row * cell_h, edge, edge)
        axes.imshow(crop[len(crop) // 2], cmap="gray", vmin=0, vmax=1)
        _frame(axes, MUTED, 0.8)
        axes.text(
            0.05, 0.96, str(k), transform=axes.transAxes, color="white", fontsize=style.SMALL, va="top", **_halo()
        )
        axes.text(0.0, -0.02, _words(draws, k, cell_w - 4), transform=axes.transAxes, fontsize=7.5, color=INK, va="top")
        if k == 0:
            style.panel_title(axes, "base crops as the network sees them")


def _random_sheet(figure, crops, draws, labels, geometry, *, left, top, height) -> None:
    step = height / len(crops)
    edge = min(146.0, step - 40)
    for k, crop in enumerate(crops):
        colour = _CROP_COLOURS[k % 4]
        axes = style.pixels(figure, left, top + k * step, edge, edge)
        axes.imshow(crop[len(crop) // 2], cmap="gray", vmin=0, vmax=1)
        _frame(axes, colour)
        axes.text(0.05, 0.95, f"r{k + 1}", transform=axes.transAxes, color=colour, fontsize=12, fontweight="bold",
            va="top", **_halo())  # fmt: skip
        words = _words(draws, geometry.bases + k, edge + 8)
        axes.text(0.0, -0.03, words, transform=axes.transAxes, fontsize=8, color=INK, va="top")
        if k == 0:
            style.panel_title(axes, "random crops")
        _overlap_table(
            figure, labels[k], geometry, left=left + edge + 12, top=top + k * step, width=min(88.0, step - 20)
        )


def _overlap_table(figure, labels, geometry, *, left, top, width) -> None:
    rows, cols = geometry.grid
    table = labels.reshape(rows, cols)
    axes = style.pixels(figure, left, top, width, width * rows / cols)
    axes.imshow(table, cmap="viridis", vmin=0, vmax=1)
    axes.set_axis_off()
    for row in range(rows):
        for col in range(cols):
            if table[row, col] > 0:
                axes.text(col, row, f"{table[row, col]:.2f}".lstrip("0"), color="white", fontsize=8 if cols <= 3 else 6,
                    ha="center", va="center", **_halo())  # fmt: skip
    axes.text(0, -0.04, "overlap", transform=axes.transAxes, fontsize=8, color=MUTED, va="top")
