"""A document as one HTML file: nothing is loaded from anywhere, and the page says so to the browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.pages.charts.chart import Chart
from benchmarks.pages.document import Bullets, Cell, Document, Figures, Fold, Heading, Paragraph, Part, Table
from benchmarks.pages.style import CSS, SCRIPT

# Forbids every request, so that a browser itself proves that the page needs none.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_WORD = 8  # letters of a cell that paper does not break either
_SHORT, _LONG = 26, 40  # letters of a cell that stays on one line, and of one that needs room
_SMALL = 340  # charts narrower than this stand closer together


def html(document: Document) -> str:
    """The page."""
    anchors = [part for part in document.parts if isinstance(part, Heading) and part.level == 2 and part.anchor]
    links = "".join(f'<a href="#{part.anchor}">{escape(_short(part.text))}</a>' for part in anchors)
    body = "\n".join(map(_part, document.parts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(document.title)}</h1><p class="subtitle">{escape(document.subtitle)}</p></header>
<nav aria-label="Parts of this page">{links}</nav>
<main>
{body}
</main>
<footer>One file, no network. The same report as text is report.md beside it; figures and tables for papers are
in paper/.
</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _part(part: Part) -> str:
    match part:
        case Heading(level, text, anchor):
            name = f' id="{escape(anchor, True)}"' if anchor else ""
            return f"<h{level}{name}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            return f"<p{_class(kind)}>{escape(text)}</p>"
        case Bullets(items):
            return f'<ul class="findings">{"".join(map(_item, items))}</ul>'
        case Table():
            return _table(part)
        case Figures(charts):
            return _figures(charts)
        case Fold(summary, parts):
            inside = "\n".join(map(_part, parts))
            return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"
    raise TypeError(f"a page has no {type(part).__name__}")


def _item(item: tuple[str, str]) -> str:
    word, text = item
    head = f'<span class="word">{escape(word)}</span>' if word else ""
    return f"<li>{head}{escape(text)}</li>"


def _table(table: Table) -> str:
    heads = "".join(_head(name, i in table.numeric) for i, name in enumerate(table.columns))
    rows = "\n".join(
        "<tr>" + "".join(_cell(cell, i in table.numeric) for i, cell in enumerate(row)) + "</tr>" for row in table.rows
    )
    label = escape(table.caption or table.name, True)
    return (
        # outside of what scrolls, so that all of it can be read on a phone
        f'<p class="caption">{escape(table.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _head(name: str, numeric: bool) -> str:
    words = " ".join(word for word, is_so in (("num", numeric), ("brief", len(name) <= _WORD)) if is_so)
    return f'<th scope="col"{_class(words)}><button type="button">{escape(name)}</button></th>'


def _cell(cell: Cell, numeric: bool) -> str:
    value = f' data-v="{cell.value:.10g}"' if cell.value is not None else ""
    marks = (
        ("num", numeric),
        ("flag", cell.flag),
        ("brief", len(cell.text) <= _WORD),
        ("short", len(cell.text) <= _SHORT),
        ("long", len(cell.text) > _LONG),
    )
    words = " ".join(word for word, is_so in marks if is_so)
    return f"<td{_class(words)}{value}>{escape(cell.text)}{_bar(cell.bar) if cell.bar else ''}</td>"


def _bar(bar: tuple[float, float, float, float, float]) -> str:
    """An interval as a line with a dot, on the scale of its table."""
    point, low, high, left, right = bar

    def x(value: float) -> float:
        return 4 + 112 * ((value - left) / (right - left) if right > left else 0.5)

    return (
        f'<svg class="bar" width="120" height="9" aria-hidden="true"><path d="M4 4.5H116" style="stroke:var(--faint)"/>'
        f'<path d="M{x(low):.1f} 4.5H{max(x(high), x(low) + 0.5):.1f}" style="stroke:var(--c0);stroke-width:3"/>'
        f'<circle cx="{x(point):.1f}" cy="4.5" r="3.5" style="fill:var(--ink)"/></svg>'
    )


def _figures(charts: Sequence[Chart]) -> str:
    widths, heights = zip(*(chart.size for chart in charts))
    kind = " small" if max(widths) < _SMALL else ""
    # charts of unlike heights would leave holes in a grid
    kind = kind or (" pack" if max(heights) > 1.4 * min(heights) else "")
    return f'<div class="charts{kind}">' + "\n".join(map(_figure, charts)) + "</div>"


def _figure(chart: Chart) -> str:
    note = escape(chart.note)
    return f"<figure><figcaption><b>{escape(chart.title)}</b>{note}</figcaption>{chart.svg()}</figure>"


def _class(words: str) -> str:
    return f' class="{words}"' if words else ""


def _short(text: str) -> str:
    return text.partition(":")[0]
