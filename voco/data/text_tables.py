"""Tables as text: CSV in any of the forms that spreadsheets write, into a header and rows of cells."""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from voco.errors import InputError

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_PROBED = 4096


def strip(text: str) -> str:
    """Text without blanks at its ends and without what is not seen there: byte order marks, marks of direction."""
    ends = "".join({c for c in (*text[:4], *text[-4:]) if unicodedata.category(c) in ("Cf", "Cc", "Zs")})
    shorter = text.strip().strip(ends)
    return shorter if shorter == text else strip(shorter)


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        columns: names, each once; columns without a name are left out.
        rows: (line in the file, cell of each column), blank lines left out.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_text(path: Path, what: str = "") -> str:
    """Text of a file in UTF-8 or UTF-16, with or without a mark, or in UTF-32 with one.

    Args:
        path: of the file.
        what: how to call it in errors.

    Raises:
        InputError: another encoding, or a workbook.
    """
    raw = Path(path).read_bytes()
    name = f"{what} {path}".strip()
    if raw.startswith(_WORKBOOKS):
        raise InputError(f"{name} is a workbook, not text; save the sheet as CSV UTF-8")
    encoding = "utf-8-sig"
    if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "utf-32"
    elif raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif len(raw) > 1 and 0 in raw[:_PROBED]:
        # UTF-16 without its mark: every other byte of plain letters is zero
        even, odd = raw[:_PROBED:2].count(0), raw[1:_PROBED:2].count(0)
        encoding = "utf-16-be" if even > odd else "utf-16-le"
    try:
        return raw.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 text (line {line}); save it as CSV UTF-8") from None


def delimiter_of(text: str) -> str:
    """Comma, semicolon, tab or bar: what the first line has most of outside quotes."""
    first = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return max(",;\t|", key=first.count)


def read_rows(path: str | Path, what: str = "") -> TextTable:
    """Read a CSV or TSV; cells are stripped, quotes may stand around them.

    Args:
        path: of the file.
        what: how to call it in errors.

    Raises:
        InputError: no text, no CSV, a column named twice, or a row with more cells than there are columns.
    """
    name = f"{what} {path}".strip()
    text = read_text(Path(path), what)
    skipped = 0
    if named := re.match(r"\s*sep=(.)\s*?(\r\n|\r|\n)", text, re.IGNORECASE):  # a first line for Excel
        delimiter, text, skipped = named.group(1), text[named.end() :], 1
    else:
        delimiter = delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        columns = [_cell(cell) for cell in next(reader, [])]
        _refuse_twice(columns, name)
        for cells in reader:
            cells = [_cell(cell) for cell in cells]
            if any(cells):
                _refuse_longer(cells, columns, delimiter, f"{name}, line {reader.line_num + skipped}")
                rows.append((reader.line_num + skipped, cells))
    except csv.Error as error:
        raise InputError(f"{name} is not a readable CSV: line {reader.line_num + skipped}: {error}") from None
    if rows and any("\n" in cell for cell in rows[-1][1]):
        _refuse_open_quote(text, delimiter, name, rows[-1][1])
    places = [(i, column) for i, column in enumerate(columns) if column]
    found = [(n, {column: cells[i] if i < len(cells) else "" for i, column in places}) for n, cells in rows]
    return TextTable([column for _, column in places], found)


def _cell(cell: str) -> str:
    cell = strip(cell)
    return cell[2:-1] if re.fullmatch(r'="[^"]*"', cell) else cell  # what keeps Excel from cutting zeros


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known word that is closest, or nothing."""
    plain = {re.sub(r"[\W_]", "", name.casefold()): name for name in known}
    close = difflib.get_close_matches(re.sub(r"[\W_]", "", word.casefold()), list(plain), n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def _refuse_twice(columns: list[str], name: str) -> None:
    if twice := [column for column, n in Counter(columns).items() if n > 1 and column]:
        raise InputError(f"{name}: columns named twice: {', '.join(map(repr, twice))}; keep one of each")


def _refuse_open_quote(text: str, delimiter: str, name: str, last: list[str]) -> None:
    """A quote that nothing closes takes all lines behind it into one cell."""
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True):
            pass
    except csv.Error as error:
        if "end of data" in str(error):
            raise InputError(
                f"{name}: a quote is opened and not closed in the row that begins with {last[0]!r:.60}, so that all "
                "lines below it are one cell; close or remove it"
            ) from None


def _refuse_longer(cells: list[str], columns: list[str], delimiter: str, where: str) -> None:
    if any(cells[len(columns) :]):
        sign = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}.get(delimiter, delimiter)
        raise InputError(
            f"{where} has {len(cells)} cells, the first line names {len(columns)} columns; put quotes around cells "
            f"that hold a {sign}" + (" (decimal commas too), or save with semicolons" if delimiter == "," else "")
        )
