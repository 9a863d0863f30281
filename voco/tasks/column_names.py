"""Words of users, in any script and with any signs, as names of columns that can be read and told apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from voco.data.cells import DASHES

_MINUS = f"[{DASHES}]"
_SIGNS = (
    (rf"\+/{_MINUS}|±", " plusminus "), (r"<=|≤", " le "), (r">=|≥", " ge "), (r"<", " lt "), (r">", " gt "),
    (r"=", " eq "), (r"%", " percent "), (r"\+", " plus "),
    # a minus sign, not a hyphen: before a number, after a word, alone
    (rf"(?<![\w.]){_MINUS}(?=\.?\d)|(?<=\w){_MINUS}(?!\w)|^{_MINUS}+$", " minus "),
)  # fmt: skip


def column_names(texts: Iterable[str]) -> list[str]:
    """A name for each text: letters, digits and ``_``; signs as words (``<5mm``: ``lt_5mm``, ``ER-``: ``ER_minus``).

    Letters of all scripts stay as they are. Texts that would have the same name get numbers: ``a_b``, ``a_b_2``.
    """
    names: list[str] = []
    for text in texts:
        name = base = _name(text)
        number = 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def _name(text: str) -> str:
    text = unicodedata.normalize("NFC", str(text)).strip()
    for pattern, word in _SIGNS:
        text = re.sub(pattern, word, text)
    name = _letters(text)
    return name or _letters("".join(map(_spelled, text))) or "label"


def _letters(text: str) -> str:
    """Letters and digits, and the names of pictures (thumbs_up_sign); marks are parts of letters in many scripts."""
    kept = (c if unicodedata.category(c)[0] in "LN" or _is_mark(c) else _picture(c) for c in text)
    return re.sub(r"_+", "_", "".join(kept)).strip("_")


def _is_mark(c: str) -> bool:
    return unicodedata.category(c)[0] == "M" and not unicodedata.name(c, "").startswith("VARIATION SELECTOR")


def _picture(c: str) -> str:
    return _spelled(c) if unicodedata.category(c) == "So" else "_"


def _spelled(c: str) -> str:
    """The Unicode name of a sign."""
    name = unicodedata.name(c, "") if unicodedata.category(c)[0] in "SP" else ""
    return f"_{name.removesuffix(' SIGN').lower().replace(' ', '_').replace('-', '_')}_"
