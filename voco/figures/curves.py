"""Curves and bars of a run: loss terms, position scores over steps, and the final comparison with the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, FAINT, INK, LINES, MUTED, SKY

_TERMS = (
    ("intra", "intra: the place within the scan"),
    ("loss", "total"),
    ("inter", "inter: between scans"),
    ("reg", "reg: base crops kept apart"),
)
_HEADS = (("encoder_", "encoder features"), ("", "through the projector"))
_KINDS = (
    ("position_accuracy", "position accuracy", "overlaps the base crops"),
    ("disjoint_accuracy", "disjoint accuracy", "shares no voxel with them"),
)


def loss_curves(metrics_rows: Sequence[Mapping], references: Mapping[str, float]) -> style.Figure:
    """Total and each term over steps, training and held-out, with the losses of predictors that know nothing.

    Args:
        metrics_rows: rows of metrics.jsonl: ``step``, ``loss``, ``intra``, ``inter``, ``reg``, ``heldout/intra``, ...
        references: fields of ``voco.reference.reference_lines``.
    """
    figure = style.new_figure(680)
    shown = [term for term in _TERMS[1:] if len(style.series(metrics_rows, term[0])[0])]
    axes = style.pixels(figure, 64, 130, 560 if shown else 960, 480)
    _draw_term(axes, metrics_rows, "intra", references)
    style.panel_title(axes, _TERMS[0][1])
    axes.set_xlabel("step", fontsize=style.SMALL, color=MUTED)
    height = (480 - 62 * (len(shown) - 1)) / max(len(shown), 1)
    for place, (name, words) in enumerate(shown):
        small = style.pixels(figure, 858, 130 + place * (height + 62), 306, height)
        _draw_term(small, metrics_rows, name, references, small=True)
        style.panel_title(small, words)
    small.set_xlabel("step", fontsize=style.SMALL, color=MUTED) if shown else None
    style.headline(figure, _loss_finding(metrics_rows, references), "Pale: training, each logged step. Blue: training, "
        "running mean. Circles: held-out scans, crops not augmented, 95 % interval over scans.")  # fmt: skip
    return figure


def training_loss(metrics_rows: Sequence[Mapping]):
    """The training loss over steps, of a method of which nothing else is known.

    Args:
        metrics_rows: rows of metrics.jsonl: ``step``, ``loss``.
    """
    figure = style.new_figure(680)
    axes = style.pixels(figure, 64, 130, 960, 480)
    _draw_term(axes, metrics_rows, "loss", {})
    style.panel_title(axes, "loss")
    axes.set_xlabel("step", fontsize=style.SMALL, color=MUTED)
    steps, values = style.series(metrics_rows, "loss")
    finding = f"The training loss is {values[-1]:.3g} at step {steps[-1]:.0f}" if len(steps) else "No loss yet"
    style.headline(figure, finding, "Pale: each logged step; blue: running mean. What was learned, other pictures say.")
    return figure


def _loss_finding(rows, references) -> str:
    steps, held = style.series(rows, "heldout/intra")
    where = "held-out"
    if not len(steps):
        steps, held = style.series(rows, "intra")
        where = "training"
    if not len(steps):
        return "No loss has been logged yet"
    best, last = references["best_constant"], held[-1]
    side = f"{'below' if last < best else 'not below'} the best constant predictor ({best:.3f})"
    return f"{where.capitalize()} intra loss is {last:.2f} at step {steps[-1]:.0f}: {side}"


def _draw_term(axes, rows, name, references, small: bool = False) -> None:
    steps, values = style.series(rows, name)
    held_steps, held = style.series(rows, f"heldout/{name}")
    if len(steps):
        axes.plot(steps, values, color=SKY, linewidth=0.9, alpha=0.45)
        width = max(1, len(steps) // 25) | 1
        axes.plot(steps, style.smooth(values, width), color=BLUE, linewidth=1.8)
    if len(held):
        low, high = _band(rows, f"heldout/{name}", held_steps)
        if low is not None:
            axes.vlines(held_steps, low, high, color=INK, linewidth=1.0, alpha=0.6)
        size = 4 if small else 6
        axes.plot(held_steps, held, "o-", color=INK, linewidth=0.8, markersize=size, markerfacecolor="white")
    levels = _levels(name, references)
    # single steps may leave the picture, and so does collapse, which is far above everything else
    usual = np.percentile(values, 99) if len(values) else 0.0
    top = 1.1 * max(usual, held.max(initial=1e-3), *[level for words, level in levels if words != "full collapse"], 0.0)
    axes.set_ylim(0, top)
    _reference_levels(axes, levels, top, small)
    style.plain(axes)
    axes.locator_params(axis="x", nbins=4 if small else 8, integer=True)
    axes.locator_params(axis="y", nbins=4 if small else 8)


def _levels(name, references) -> list[tuple[str, float]]:
    if name == "intra":
        return [
            ("zero logits", references["zero_logits"]),
            ("best constant", references["best_constant"]),
            ("full collapse", references["collapse"]),
        ]
    # orthogonal embeddings have no inter and no reg loss, so their total is that of intra
    return [("zero logits", references["zero_logits"])] if name == "loss" and references else []


def _reference_levels(axes, levels, top, small) -> None:
    labels = []
    for words, level in levels:
        if level > top:
            axes.text(
                1.0,
                0.985,
                f"{words} {level:.2f} is above ↑",
                transform=axes.transAxes,
                fontsize=style.SMALL,
                color=MUTED,
                ha="right",
                va="top",
            )
            continue
        axes.axhline(level, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        labels.append((level, f"{words} {level:.3f}", INK))
    if small:
        for level, words, colour in labels:
            axes.text(1.0, level + 0.02 * top, words, transform=axes.get_yaxis_transform(), fontsize=8.5, color=colour,
                ha="right", va="bottom")  # fmt: skip
    else:
        style.label_right(axes, labels)


def _band(rows, name, steps):
    low_steps, low = style.series(rows, f"{name}_low")
    _, high = style.series(rows, f"{name}_high")
    return (low, high) if np.array_equal(low_steps, steps) else (None, None)


def position_scores(metrics_rows: Sequence[Mapping], lines: Mapping, references: Mapping[str, float]) -> style.Figure:
    """Position accuracy and disjoint accuracy over steps, of features and through the projector, beside the lines.

    Args:
        metrics_rows: rows of metrics.jsonl with ``heldout/...`` scores.
        lines: ``step0``, ``untrained`` and ``histogram`` -> ``HealthReport``.
        references: fields of ``voco.reference.reference_lines``.
    """
    heads = _HEADS if "collapse" in references else _HEADS[:1]  # a method without a projector has features alone
    figure, highest = style.new_figure(134 + 370 * len(heads)), _highest(metrics_rows, lines, references)
    for column, (score, words, note) in enumerate(_KINDS):
        for row, (prefix, kind) in enumerate(heads):
            axes = style.pixels(figure, 64 + column * 592, 162 + row * 370, 335, 280)
            _draw_score(axes, metrics_rows, lines, references, f"{prefix}{score}_balanced", highest)
            style.panel_title(axes, f"{words}, {kind}", note)
            if row == len(heads) - 1:
                axes.set_xlabel("step", fontsize=style.SMALL, color=MUTED)
    scans = style.series(metrics_rows, "heldout/scans")[1]
    style.headline(
        figure,
        _score_finding(metrics_rows, lines, references),
        "Which base crop does a random crop of a held-out scan belong to? Balanced over cells; each crop has its own "
        "intensity shift. "
        + (f"Blue band: 95 % interval over {scans[-1]:.0f} scans. " if len(scans) else "")
        + "Green band: how high untrained networks come by their draw.",
    )
    return figure


def _constant(score: str, references) -> float:
    return references["balanced_chance" if score.endswith("_balanced") else "position_chance"]


def _score_finding(rows, lines, references) -> str:
    from voco.health.report import HEADLINE

    steps, values = style.series(rows, f"heldout/{HEADLINE}")
    if not len(steps):
        return "No position score has been measured yet"
    levels = [line.score(HEADLINE) for line in lines.values()]
    best = max([level for level in levels if level is not None] + [_constant(HEADLINE, references)])
    return f"At step {steps[-1]:.0f}: place accuracy, the mean of both, {values[-1]:.2f} (best line {best:.2f})"


def _highest(rows, lines, references) -> float:
    """Upper end of all four panels, so that they can be compared."""
    found = [0.3, references["balanced_chance"]]
    for score in [f"{prefix}{score}_balanced" for score, _, _ in _KINDS for prefix, _ in _HEADS]:
        for name in (score, f"{score}_high"):
            found += style.series(rows, f"heldout/{name}")[1].tolist()
        found += [line.score(score) or 0.0 for line in lines.values()]
    return min(1.0, 1.06 * max(found))


def _draw_score(axes, rows, lines, references, score, highest) -> None:
    steps, values = style.series(rows, f"heldout/{score}")
    labels = []
    if len(steps):
        low, high = _band(rows, f"heldout/{score}", steps)
        if low is not None:
            axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(steps, values, "o-", color=BLUE, linewidth=2, markersize=4)
        labels.append((values[-1], f"trained {values[-1]:.2f}", BLUE))
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    levels = {"constant": _constant(score, references)} | {name: line.score(score) for name, line in lines.items()}
    limit = _limit(lines, score)
    if limit is not None:
        axes.axhspan(levels["untrained"], limit, color=LINES["untrained"][1], alpha=0.13, linewidth=0)
    for name, level in levels.items():
        if level is not None:
            words, colour, dashes = LINES[name]
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.4)
            labels.append((level, f"{words} {level:.2f}", colour))
    axes.set_ylim(0, highest)
    style.label_right(axes, labels)
    style.plain(axes)
    axes.locator_params(axis="x", nbins=5, integer=True)


def _limit(lines, score: str) -> float | None:
    """How high one untrained network comes by its draw, where several were measured."""
    from voco.health.inference import chance_limit

    networks = lines["untrained"].of_networks(score) if "untrained" in lines else []
    return chance_limit(networks) if len(networks) > 1 else None


def heldout_summary(report, lines: Mapping, references: Mapping[str, float], *, title="") -> style.Figure:
    """Bars of the trained encoder and the lines: encoder features, projector, and features of crops as they are.

    Args:
        report: ``HealthReport`` of the trained encoder.
        lines: ``step0``, ``untrained`` and ``histogram`` -> ``HealthReport``.
        references: fields of ``voco.reference.reference_lines``.
        title: replaces the finding.
    """
    shifted, heads = "intensity shift per crop", _HEADS if "position_accuracy" in report.tallies else _HEADS[:1]
    modes = (*((*head, shifted) for head in heads), ("encoder_clean_", "encoder features", "crops as they are"))
    figure = style.new_figure(150 + 275 * len(modes))
    for column, (score, words, note) in enumerate(_KINDS):
        for row, (prefix, kind, mode) in enumerate(modes):
            axes = style.pixels(figure, 170 + column * 575, 165 + row * 275, 420, 190)
            _draw_bars(axes, report, lines, references, f"{prefix}{score}_balanced")
            style.panel_title(axes, f"{words}, {kind}", f"{note}; {mode}")
    style.headline(
        figure,
        title or _summary_finding(report, lines, references),
        f"Balanced over cells; {report.scans} held-out scans ({report.disjoint_scans} deep enough for the disjoint "
        f"score), {report.windows} windows, {report.queries} random crops each. Whiskers: 95 % interval over patients; "
        "dots: single untrained networks, tick: how high one comes by its draw.",
    )
    return figure


def _summary_finding(report, lines, references) -> str:
    """The verdict in a few words: what it rests on decides, not the bars."""
    from voco.health.verdict import judgements

    found = judgements(report, lines, references)
    if not found:
        return "No position score has been measured"
    one = found[0]
    how = "cannot be judged" if not one.judgeable else f"{'' if one.above else 'not '}surely above every line"
    return f"Place accuracy of the encoder, the mean of both, {one.value:.2f}: {how}"


def _draw_bars(axes, report, lines, references, score) -> None:
    reports = {"trained": report, **lines}
    names = [name for name in LINES if name == "constant" or name in reports]
    for place, name in enumerate(names):
        colour = LINES[name][1]
        found = reports.get(name)
        value = _constant(score, references) if name == "constant" else found.score(score)
        if value is None:
            axes.text(0.01, place, "not measured", fontsize=style.SMALL, color=MUTED, va="center")
            continue
        axes.barh(place, value, height=0.62, color=colour, alpha=1.0 if name == "trained" else 0.55, linewidth=0)
        interval = None if found is None else found.interval(score)
        end = value
        if interval is not None:
            axes.plot(interval, (place, place), color=INK, linewidth=1.2, solid_capstyle="butt")
            end = max(value, interval[1])
        networks = [] if found is None else found.of_networks(score)
        if networks:
            limit = _limit(lines, score)
            axes.plot(networks, [place] * len(networks), "o", color=INK, markersize=2.5, alpha=0.7)
            axes.plot([limit] * 2, [place - 0.31, place + 0.31], color=INK, linewidth=1.2)
            end = max(end, limit)
        axes.text(end + 0.015, place, f"{value:.2f}", fontsize=style.NOTE, color=INK, va="center",
            fontweight="bold" if name == "trained" else "normal")  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    style.plain(axes, grid=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(names)), [LINES[name][0] for name in names], fontsize=style.NOTE, color=INK)
