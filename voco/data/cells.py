"""What the cells of a table mean: which labels are unknown, what is a number, which names look alike.

The one place that decides on words for "unknown", for tables of labels, probes and lists of scans alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from voco.data.text_tables import strip
from voco.data.unknown_words import MAYBE_WORDS, UNKNOWN_WORDS
from voco.errors import InputError

_ERROR_OF_A_SHEET = re.compile(r"#[^\s\d].*[!?]")
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # hyphens, dashes and the minus sign
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")
_MOST_CLASSES = 10  # of numbers; more are a measurement
_SHOWN = 5


def plain(cell: str) -> str:
    """A cell with letters composed (a letter and its accent may be two characters) and ``-`` for the minus of print."""
    return re.sub(rf"^[{DASHES}](?=\.?\d)", "-", unicodedata.normalize("NFC", strip(str(cell))))


def is_unknown(cell: str) -> bool:
    """Whether a cell is empty or one of the words that always mean "unknown"."""
    key = _key(cell)
    return (
        not plain(cell)
        or key in UNKNOWN_WORDS
        or _condensed(key) in _CONDENSED
        or _ERROR_OF_A_SHEET.fullmatch(key) is not None
    )


def may_be_unknown(cell: str) -> bool:
    """Whether a cell is a word that people also use for a class, such as ``none`` or ``-``."""
    return _key(cell) in MAYBE_WORDS or _is_dash(cell)


def name_or_none(cell: object) -> str | None:
    """The name in a cell, of a patient or series; None where it is a word for "unknown", which names nobody."""
    text = "" if cell is None else str(cell).strip()
    return None if is_unknown(text) or may_be_unknown(text) else text


def known_labels(
    column: str,
    cells: Sequence[str],
    *,
    option: str,
    unknown: Sequence[str] | None = None,
    kind: str = "auto",
    classes: Sequence[str] = (),
) -> tuple[list[str], str]:
    """The cells of a column of labels, ``""`` where the label is not known, numbers with a decimal point.

    Args:
        column: its name, for messages.
        cells: text of each row.
        option: the setting that names unknown words, e.g. ``--task.unknown``, for messages.
        unknown: exactly these words are unknown, beside the empty cell; None decides by the words themselves.
        kind: auto, binary, multilabel, multiclass or regression.
        classes: words that are classes whatever they mean elsewhere.

    Returns:
        The cells, and a sentence on the words that were taken as unknown (empty without any).

    Raises:
        InputError: a word that may be a class or not; words for "unknown" beside a single class; infinite numbers;
            decimal commas that may be thousands.
    """
    given = {plain(c) for c in classes}
    cells = [plain(cell) for cell in cells]
    sure = _chosen(cells, unknown) if unknown is not None else {c for c in cells if is_unknown(c)}
    sure -= given
    words = sorted(sure - {""})
    if unknown is None:
        rest = [c for c in cells if c and c not in sure]
        doubt = sorted({c for c in rest if c not in given and _in_doubt(c, rest, kind)})
        if not given and kind != "multiclass" and (texts := _texts_among_numbers(rest, doubt)):
            _ask(column, cells, sorted({*doubt, *texts}), words, option, "a class" if _are_grades(rest, kind) else "")
        if doubt and not given and _may_be_class(doubt, rest, kind):
            as_number = all(number(word) is not None for word in doubt)
            _ask(column, cells, doubt, words, option, "a value" if as_number else "a class")
        sure |= set(doubt)
        if kind == "auto":
            _ask_where_one_class_is_left(column, cells, sure, option)
            _refuse_spellings(column, [c for c in cells if c and c not in sure and c not in given])
    out = ["" if c in sure else c for c in cells]
    out = _decimal_points(column, _booleans(out, kind))
    _refuse_infinite(column, out, words, option)
    count = Counter(c for c in cells if c and c in sure)
    if not count:
        return out, ""
    said = ", ".join(f"{word!r} ({n})" for word, n in count.most_common(_SHOWN))
    return out, f"column {column}: taken as unknown: {said}; where that is wrong, say so with {option}"


def number(cell: str) -> float | None:
    """The number in a cell, or None."""
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that one person may have under two spellings: ``001`` and ``1``, ``P-1`` and ``p01``, ``3.0``."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        key = re.sub(r"\.0+$", "", unicodedata.normalize("NFKC", name).casefold().strip())
        if re.fullmatch(r"\d+(\.\d+)?e\+?\d{1,2}", key):  # a spreadsheet's 1E+05
            key = f"{float(key):.0f}"
        key = re.sub(r"\d+", lambda digits: str(int(digits.group())), key)
        key = re.sub(r"[\W_]+", " ", key)
        key = re.sub(r"(?<=[^\W\d]) (?=\d)|(?<=\d) (?=[^\W\d])", "", key)
        if key in first:
            pairs.append((first[key], name))
        else:
            first[key] = name
    return pairs


def say_look_alikes(names: Iterable[str]) -> list[str]:
    """A sentence for the user about patients whose names look alike; none where there are none."""
    pairs = look_alikes(names)
    if not pairs:
        return []
    shown = ", ".join(f"{a!r} and {b!r}" for a, b in pairs[:_SHOWN]) + (", …" if len(pairs) > _SHOWN else "")
    return [
        f"patients {shown} look alike and are taken as different people; if they are one, write them alike, so that no "
        "split parts them (spreadsheets cut leading zeros and add .0)"
    ]


def _key(cell: str) -> str:
    text = unicodedata.normalize("NFKC", plain(cell)).casefold()  # the wide letters of East Asian keyboards
    return text.strip("[](){}<>'\"").strip() or text


def _condensed(key: str) -> str:
    return re.sub(r"[\s._/-]", "", key)


# Words of letters alone may be written "N.A", "not_available", "NotAvailable".
_CONDENSED = frozenset(_condensed(word) for word in UNKNOWN_WORDS if word.replace(" ", "").isalpha())


def _is_dash(cell: str) -> bool:
    return 0 < len(cell) <= 4 and set(cell) <= set(DASHES)


def _chosen(cells: Sequence[str], unknown: Sequence[str]) -> set[str]:
    """Cells that are one of the words given: the same text but for case, or the same number."""
    words = {plain(word).casefold() for word in unknown}
    values = {value for word in words if (value := number(word)) is not None}
    return {c for c in cells if c and (c.casefold() in words or number(c) in values)}


def _in_doubt(cell: str, rest: Sequence[str], kind: str) -> bool:
    if _is_dash(cell):
        return not _signs(rest)  # beside a plus sign it is the other class
    return may_be_unknown(cell) or _is_code(cell, rest, kind)


def _signs(cells: Iterable[str]) -> bool:
    """Whether a cell is made of plus signs, as in ``+``, ``++``, ``+/-``."""
    return any(set(c) <= set("+±()/" + DASHES) and set(c) & set("+±") for c in cells)


def _is_code(cell: str, rest: Sequence[str], kind: str) -> bool:
    """Whether a number is written like a code for "unknown": -9, -99, 999 ..., far from all others."""
    if kind == "multiclass" or not re.fullmatch(r"(-(7+|8+|9+)|7{2,}|8{2,}|9+)(\.0+)?", cell):
        return False
    value = float(cell)
    others = {_value(c) for c in rest if not may_be_unknown(c)} - {None, value}
    others = {v for v in others if np.isfinite(v) and not re.fullmatch(r"-?(7+|8+|9+)", f"{v:g}")}
    if len(others) < 2:
        return False
    return min(others) >= 0 if value < 0 else value > 3 * max(*others, 1.0)


def _may_be_class(doubt: Sequence[str], rest: Sequence[str], kind: str) -> bool:
    """Whether any of the words in doubt could be a class, or a value, of its own beside the other cells."""
    if any(number(word) is not None for word in doubt):
        return True  # a code among numbers: nothing tells it from a value
    others = {c for c in rest if c not in doubt}
    if kind in ("binary", "multilabel", "regression") or not others:
        return False
    if any(_value(c) is None for c in others):
        return True
    # Beside numbers a dash is an empty cell, and so is any word beside a measurement; "none, 1, 2, 3" may be grades.
    return _are_grades(others, kind) and not all(_is_dash(word) for word in doubt)


def _value(cell: str) -> float | None:
    return number(cell.replace(",", "."))


def _are_grades(cells: Iterable[str], kind: str) -> bool:
    """Whether the numbers among some cells may be classes: few and whole."""
    values = {value for c in cells if (value := _value(c)) is not None and np.isfinite(value)}
    return kind == "auto" and len(values) <= _MOST_CLASSES and all(value == int(value) for value in values)


def _texts_among_numbers(rest: Sequence[str], doubt: Sequence[str]) -> list[str]:
    """Words in a column of numbers, which no list of words need know: ``x``, ``refused``, ``see report``.

    ``3a`` and ``>2`` beside numbers are classes, so texts with digits are none of them.
    """
    others = [c for c in rest if c not in doubt]
    texts = [c for c in others if _value(c) is None and c.casefold() not in ("true", "false")]
    numbers = [c for c in others if _value(c) is not None]
    if any(c.isdigit() for text in texts for c in text) or _signs(texts) or len(set(numbers)) < 2:
        return []
    return sorted(set(texts)) if 2 * len(numbers) >= len(others) else []


def _ask(column: str, cells: Sequence[str], doubt: Sequence[str], words: Sequence[str], option: str, kind: str) -> None:
    """Stop with the question whether words are unknown labels or of a ``kind``; empty: nothing else is thinkable."""
    count = Counter(cells)
    named = ", ".join(f"{word!r} ({count[word]} of {len(cells)} rows)" for word in doubt[:_SHOWN])
    named += f" and {len(doubt) - _SHOWN} more" if len(doubt) > _SHOWN else ""
    raise InputError(
        f"column {column} holds {named}: an unknown label{', or ' + kind if kind else ' among numbers'}? Say {option} "
        f"{_listed([*words, *doubt])} to leave these rows out, or "
        + (f"{option} {_listed(words)} to take it as {kind}" if kind else "write numbers")
    )


def _ask_where_one_class_is_left(column: str, cells: Sequence[str], sure: set[str], option: str) -> None:
    left = sorted({c for c in cells if c and c not in sure})
    words = sorted(sure - {""})
    if len(left) > 1 or not words:
        return
    count = Counter(cells)
    named = ", ".join(f"{word!r} ({count[word]} rows)" for word in words[:_SHOWN])
    beside = f"{left[0]!r} and nothing else" if left else "no label at all"
    raise InputError(
        f"column {column} holds {beside} once the words for unknown are left out: {named}; there is nothing to learn. "
        f"If {words[0]!r} is a class, say {option} {_listed(words[1:])}"
    )


def _booleans(cells: list[str], kind: str) -> list[str]:
    """``TRUE`` and ``FALSE`` as 1 and 0 where the column has those as well, or must be of two values."""
    words = {c: c.casefold() for c in cells if c}
    among = {"true", "false", "0", "1", "0.0", "1.0"}
    two = kind in ("binary", "multilabel") or (kind == "auto" and not set(words.values()) <= {"true", "false"})
    if not two or not set(words.values()) <= among:
        return cells
    return [{"true": "1", "false": "0"}.get(c.casefold(), c) for c in cells]


def _listed(words: Sequence[str]) -> str:
    """Words as a shell takes them."""
    return " ".join(w if re.fullmatch(r"[\w./+-]+", w) else repr(w) for w in words) if words else "[]"


def _decimal_points(column: str, cells: list[str]) -> list[str]:
    """``0,5`` as ``0.5`` where all cells of the column are numbers.

    Raises:
        InputError: commas and points in one column, or commas that may part thousands.
    """
    known = [c for c in cells if c]
    commas = [c for c in known if _DECIMAL_COMMA.fullmatch(c)]
    if not commas or any(number(c) is None for c in known if c not in commas):
        return cells
    points = [c for c in known if "." in c]
    if points:
        raise InputError(
            f"column {column} has numbers with a comma ({commas[0]!r}) and with a point ({points[0]!r}); write "
            "all with a decimal point"
        )
    if all(_THOUSANDS.fullmatch(c) for c in commas):
        raise InputError(
            f"column {column}: the comma of {commas[0]!r} may be a decimal comma or part thousands; write "
            f"{commas[0].replace(',', '.')} or {commas[0].replace(',', '')}"
        )
    return [c.replace(",", ".") for c in cells]


def _refuse_spellings(column: str, cells: Sequence[str]) -> None:
    """One class in several spellings would be several classes."""
    spellings: dict[str, set[str]] = {}
    for cell in cells:
        spellings.setdefault(" ".join(cell.casefold().split()), set()).add(cell)
    if several := [sorted(found) for found in spellings.values() if len(found) > 1]:
        raise InputError(
            f"column {column} holds {' and '.join(map(repr, several[0]))}, which differ in capitals or blanks only; "
            "write one class in one way, or name the classes yourself (--task.kind multiclass)"
        )


def _refuse_infinite(column: str, cells: Sequence[str], words: Sequence[str], option: str) -> None:
    values = [number(c) for c in cells if c]
    if any(value is None for value in values):
        return
    bad = [c for c in cells if c and not np.isfinite(float(c))]
    if bad:
        shown = ", ".join(sorted(set(bad))[:_SHOWN])
        raise InputError(
            f"column {column} holds {len(bad)} numbers that are not finite ({shown}), which nothing can learn; mend "
            f"the cells, leave them empty, or say {option} {_listed([*words, *sorted(set(bad))])}"
        )
