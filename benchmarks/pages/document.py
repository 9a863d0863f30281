"""A report before it has a form: headings, paragraphs, tables, charts. HTML, Markdown and LaTeX are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

from benchmarks.pages.charts.chart import Chart


@dataclass(frozen=True)
class Cell:
    """Content of a table cell.

    Attributes:
        text: as printed.
        value: what the column is sorted by; the text where None.
        bar: (point, low, high, left, right): an interval to be drawn on a scale from left to right, where there is
            room for it.
        flag: whether the text is a warning.
    """

    text: str
    value: float | None = None
    bar: tuple[float, float, float, float, float] | None = None
    flag: bool = False


@dataclass(frozen=True)
class Heading:
    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Text; ``kind`` is "", ``banner`` (cannot be missed) or ``note`` (quieter)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """Items, each with a word in front of it that says of which kind it is (may be empty)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; ``name`` is that of its LaTeX file, ``numeric`` the columns that are set to the right."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Figures:
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Fold:
    """Parts that are folded away until somebody asks for them; in print they are open."""

    summary: str
    parts: Sequence[Part]


Part = Union[Heading, Paragraph, Bullets, Table, Figures, "Fold"]


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    parts: Sequence[Part]

    def walk(self):
        """All parts, folded ones too, in order."""
        return _walk(self.parts)

    @property
    def charts(self) -> list[Chart]:
        return [chart for part in self.walk() if isinstance(part, Figures) for chart in part.charts]

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.walk() if isinstance(part, Table)]


def _walk(parts: Sequence[Part]):
    for part in parts:
        yield part
        if isinstance(part, Fold):
            yield from _walk(part.parts)
