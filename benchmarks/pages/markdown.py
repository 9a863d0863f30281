"""A document as Markdown: the same words and tables, charts as links to the files in ``paper/``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.pages.document import Bullets, Document, Figures, Fold, Heading, Paragraph, Part, Table


def markdown(document: Document, figures: str = "paper/figures") -> str:
    """The text; charts are looked for in ``figures``, relative to the file."""
    head = [f"# {document.title}", document.subtitle]
    return "\n\n".join([*head, *_parts(document.parts, figures, 0)]) + "\n"


def _parts(parts: Sequence[Part], figures: str, deeper: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        match part:
            case Heading(level, text):
                lines.append(f"{'#' * (level + deeper)} {text}")
            case Paragraph(text, "banner"):
                lines.append(f"> **{text}**")
            case Paragraph(text):
                lines.append(text)
            case Bullets(items):
                lines.append("\n".join(f"- {f'*{word}*: ' if word else ''}{text}" for word, text in items))
            case Table():
                lines.append(_table(part))
            case Figures(charts):
                lines += [f"![{_plain(chart.title)}]({figures}/{chart.name}.svg)  \n{chart.note}" for chart in charts]
            case Fold(summary, inside):
                lines += [f"**{summary}**", *_parts(inside, figures, deeper)]
    return lines


def _table(table: Table) -> str:
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.columns))]
    rows = [table.columns, rule, *([cell.text for cell in row] for row in table.rows)]
    body = "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in rows)
    return f"{table.caption}\n\n{body}" if table.caption else body


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"[\[\]]", "", text)
