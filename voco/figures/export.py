"""A figure as a file, and as SVG that follows the colours of a page: light, dark and print."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from voco.figures.style import LIGHT
from voco.files import whole, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nothing that changes from one time to the next: the same figure gives the same bytes.
_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
_FONTS = "system-ui, Helvetica, Arial, sans-serif"
_NARROWER = 1 / 0.88  # fonts of pages may be that much larger than matplotlib's own and take the same room
_TIP = "tip:"
_DEFAULT = "#000000"  # matplotlib's, of what has been given no colour
_NAMES = {color: name for name, color in LIGHT.items()} | {_DEFAULT: "ink"}


def save(figure: Figure, path: str | Path, title: str = "") -> Path:
    """Write a figure, whole or not at all, as the ending says: PNG, PDF or SVG; the same figure gives the same bytes.

    Args:
        figure: matplotlib figure.
        path: file; its folder is made if missing.
        title: of an SVG: what is shown.
    """
    import matplotlib

    kind = Path(path).suffix.removeprefix(".")
    if kind == "svg":
        return write_text(path, svg(figure, title) + "\n")
    # fonts as publishers ask for them; classes may have names in any script, of which the font draws some as boxes
    with warnings.catch_warnings(), matplotlib.rc_context({"pdf.fonttype": 42}), whole(path) as place:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(place, format=kind, dpi=figure.dpi, metadata=_METADATA[kind])
    return Path(path)


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG under their names."""
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def tip(artist, words: str):
    """Words that a page shows when the mouse rests on an artist; returns the artist."""
    artist.set_gid(_TIP + words)
    return artist


def svg(figure: Figure, title: str = "", *, page: bool = False) -> str:
    """A figure as SVG without ids, in which words are words.

    Args:
        figure: matplotlib figure.
        title: what is shown, for people who hear the page.
        page: to stand inside an HTML page: colours of ``style.LIGHT`` become CSS variables, and nothing is cut at the
            edge of its axes, because a page that loads nothing holds no ``url()``.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "voco"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    shapes = {f"#{node.get('id')}": node.get("d") for node in root.iter("path") if node.get("id")}
    for node in list(root.iter()):
        _clean(node, shapes, page)
    width, height = (f"{value * 72:g}" for value in figure.get_size_inches())
    root.attrib = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height, "role": "img"}
    root.set("style", f"fill: {_paint(_DEFAULT, page)}; stroke-linejoin: round")
    if page:
        root.attrib |= {"class": "chart", "aria-label": title}
    else:
        root.set("xmlns", "http://www.w3.org/2000/svg")
    parts = [part for child in root for part in _flat(child, page)]
    root[:] = parts if page else [_titled(title), *parts]
    return ElementTree.tostring(root, encoding="unicode")


def _clean(node: ElementTree.Element, shapes: dict[str, str], page: bool) -> None:
    """What matplotlib writes, without what nobody reads; markers stand where they are used."""
    own = node.attrib
    if node.tag != "text":
        node.text = None
    node.tail = None
    if "style" in own:
        words = re.sub(r"([\d.]+)px", lambda found: f"{float(found[1]) * _NARROWER:.3g}px", own["style"])
        words = re.sub(r"'DejaVu Sans'[^;]*", _FONTS, words)
        own["style"] = re.sub("#[0-9a-f]{6}", lambda found: _paint(found[0], page), words)
    if own.get("transform", "").startswith("rotate(-0 "):
        del own["transform"]
    if node.tag == "use":
        node.tag = "path"
        own["d"] = shapes[own.pop("{http://www.w3.org/1999/xlink}href")]
        own["transform"] = f"translate({own.pop('x')} {own.pop('y')})"
    if "d" in own:
        own["d"] = " ".join(own["d"].split())
    if page:
        own.pop("clip-path", None)
    if node.tag == "g":
        name = own.pop("id", "")
        if name.startswith(_TIP):
            node.insert(0, _titled(name.removeprefix(_TIP)))


def _paint(color: str, page: bool) -> str:
    if page and color in _NAMES:
        return f"var(--{_NAMES[color]})"
    return LIGHT["ink"] if color == _DEFAULT else color


def _titled(words: str) -> ElementTree.Element:
    title = ElementTree.Element("title")
    title.text = words
    return title


def _flat(node: ElementTree.Element, page: bool) -> list[ElementTree.Element]:
    """A node without groups that say nothing and without definitions that nobody uses any more."""
    if node.tag == "defs":
        node[:] = [child for child in node if child.tag in ("clipPath", "pattern") and not page]
        return [node] if len(node) else []
    if node.tag not in ("g", "svg"):
        return [node]
    node[:] = [part for child in node for part in _flat(child, page)]
    return list(node) if not node.attrib and not (len(node) and node[0].tag == "title") else [node]
