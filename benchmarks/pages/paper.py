"""``paper/``: every figure as SVG, PDF and CSV, tables as LaTeX, participant flow, a paragraph on methods."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pages.document import Document, Table
from voco.files import write_rows, write_text

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$",
    "<": r"\textless{}", ">": r"\textgreater{}", "…": r"\dots{}", "★": r"$\star$",
}  # fmt: skip


def write_paper(folder: Path, document: Document, methods: str) -> list[Path]:
    """Write everything that a paper takes from a report.

    Args:
        folder: is made if missing; files of the same names are replaced.
        document: whose charts and tables.
        methods: paragraph.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in document.charts:
        paths += chart.save(folder / "figures")
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    for table in document.tables:
        paths += [tables / f"{table.name}.tex", tables / f"{table.name}.csv"]
        write_text(paths[-2], latex(table))
        write_rows(paths[-1], [table.columns, *([cell.text for cell in row] for row in table.rows)])
    paths.append(folder / "methods.txt")
    write_text(paths[-1], methods + "\n")
    return paths


def latex(table: Table) -> str:
    """A table for the packages booktabs and graphicx."""
    columns = "".join("r" if i in table.numeric else "l" for i in range(len(table.columns)))
    lines = [" & ".join(escaped(cell.text) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escaped, table.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter) for letter in re.sub(r"\s+", " ", text))
