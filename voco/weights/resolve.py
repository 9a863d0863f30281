"""From what a user names (a tag, a file, a folder, a hub id) to a path on this machine and the record it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from voco.encoders.base import ENCODERS
from voco.errors import InputError
from voco.weights import SUFFIXES
from voco.weights.sources import WeightSource, find_source, source_of_file, sources_of

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(/[\w./-]+)?")


@dataclass(frozen=True)
class Weights:
    """Where weights are and which published record they are, if one is known."""

    path: Path
    source: WeightSource | None = None


def resolve(arch: str, tag: str, checkpoint: str | Path | None) -> Weights | None:
    """The weights that a name and a checkpoint mean together; published files are downloaded where they are missing.

    Args:
        arch: registered name.
        tag: of ``arch.tag``, or empty.
        checkpoint: path; or a tag (``kinetics400``, ``slow_r50.kinetics400``; of a part of the network by the part's
            name, ``slices/vgg16.imagenet``); or a Hugging Face id ``owner/name`` with or without a file. What exists as
            a path is taken as a path.

    Returns:
        None where neither tag nor checkpoint is given.

    Raises:
        InputError: unknown tag, nothing there, or a download that is not possible, with what to do.
    """
    source = find_source(arch, tag) if tag else None
    if checkpoint is None:
        return _download(source) if source else None
    text, path = str(checkpoint), Path(checkpoint).expanduser()
    if path.exists():
        return Weights(path, source or (source_of_file(arch, path) if path.is_file() else None))
    if named := _tag(arch, text) or _tag_of_part(arch, text):
        if source is not None and named != source:
            raise InputError(f"{source.name} and {named.name} are two different weights; name one of them")
        return _download(named)
    if is_hub_id(text):
        return Weights(from_hub(text), source)
    known = ", ".join(source.tag for source in sources_of(arch))
    raise InputError(
        f"no weights at {text}: expected a file, an encoder or run folder, "
        f"a Hugging Face id owner/name{f', or one of the tags {known}' if known else ''}"
    )


def _tag(arch: str, text: str) -> WeightSource | None:
    """The record that a checkpoint names by its tag, alone or after the architecture or one of its aliases."""
    names = (arch, *ENCODERS.aliases(arch))
    tag = next((text.removeprefix(f"{name}.") for name in names if text.startswith(f"{name}.")), text)
    try:
        return find_source(arch, tag)
    except InputError:
        return None


def _tag_of_part(arch: str, text: str) -> WeightSource | None:
    """The record of an architecture that a part of this one is made of, by its whole name ``slices/MODEL.TAG``."""
    name, _, tag = text.partition(".")
    return find_source(name, tag) if tag and fnmatchcase(name, ENCODERS[arch].part) else None


def _download(source: WeightSource) -> Weights:
    from voco.weights.download import fetch

    return Weights(fetch(source), source)


def is_hub_id(text: str) -> bool:
    """``owner/name`` or ``owner/name/file``; a mistyped path into a folder that is here is not one."""
    if not _HUB_ID.fullmatch(text) or Path(text.split("/")[0]).is_dir():
        return False
    return text.count("/") > 1 or Path(text).suffix not in SUFFIXES


def from_hub(text: str) -> Path:
    """The file or encoder folder that a hub id means, in the hub's cache.

    Raises:
        InputError: not to be had, with what to fetch by hand.
    """
    from voco.weights.download import fetch_hub_file

    owner, name, *rest = text.split("/", 2)
    try:
        return fetch_hub_file(f"{owner}/{name}", rest[0] if rest else None)
    except InputError as error:
        raise InputError(f"there is no file or folder {text}, and as a Hugging Face id: {error}") from error
