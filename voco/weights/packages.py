"""Weights that are published as Python packages: found where they are installed, without importing anything of them."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from voco.errors import InputError
from voco.files import whole
from voco.weights.sources import WeightSource


def installed_parts(source: WeightSource) -> list[Path]:
    """The parts of a file that installed packages hold; empty unless all packages are there in the recorded version."""
    parts = []
    for requirement, place in source.packages.items():
        name, _, version = requirement.partition("==")
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return []
        part = Path(package.locate_file(place))
        if package.version != version or not part.is_file():
            return []
        parts.append(part)
    return parts


def join_parts(source: WeightSource, place: Path) -> Path | None:
    """Put the parts of installed packages together, once.

    Args:
        source: a record with several packages, and a digest.
        place: where the whole file goes; it is written beside it, compared and then renamed.

    Returns:
        ``place``, or None where the packages are not installed.

    Raises:
        InputError: the parts do not make the published file.
    """
    parts = installed_parts(source)
    if len(parts) < 2:
        return None
    with whole(place) as beside:
        with open(beside, "wb") as target:
            for part in parts:
                with part.open("rb") as data:
                    shutil.copyfileobj(data, target)
        if not source.is_published_file(beside):
            raise InputError(
                f"the parts of {source.file} in {', '.join(source.packages)} do not make the published file "
                f"({source.checksum}); install these packages again"
            )
    return place
