"""Published weights: one record per ``arch.tag`` that says where the file is, what it expects and who made it."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from voco.encoders.base import ENCODERS
from voco.encoders.spec import InputSpec
from voco.errors import InputError


@dataclass(frozen=True)
class WeightSource:
    """One published file, or one way of feeding it.

    Attributes:
        arch, tag: ``arch.tag`` is its name.
        file: file name as published.
        url: the file itself or, where ``download`` is False, the page where a person gets it.
        input_spec: what the weights were trained on.
        licence: of the weights, as their authors state it.
        citation: the paper to cite.
        data: public data sets that the weights were trained on, by short fixed names.
        sha256: full digest or the prefix that is published; empty where none is.
        md5: digest, where that is what is published.
        packages: Python packages that bring the file, as pip takes them -> where it lies in each; the parts of several
            make one file, in this order.
        download: whether the url gives the file without a person's help.
        arguments: keywords of the architecture that go with these weights.
        format: name of the ``Format`` that the file is in, where one architecture has files of several.
        note: clips, accuracy, traps.
        also: further tags that mean this one.
    """

    arch: str
    tag: str
    file: str
    url: str
    input_spec: InputSpec
    licence: str
    citation: str
    data: tuple[str, ...]
    sha256: str = ""
    md5: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    download: bool = True
    arguments: Mapping = field(default_factory=dict)
    format: str = ""
    note: str = ""
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arch}.{self.tag}"

    @property
    def checksum(self) -> str:
        """The published digest for people, with its kind; empty where there is none."""
        return f"sha256 {self.sha256}" if self.sha256 else f"md5 {self.md5}" if self.md5 else ""

    def is_published_file(self, path: Path) -> bool | None:
        """Whether a file is the one that was published; None where no digest is known to tell by."""
        if not self.checksum:
            return None
        facts = path.stat()
        digest = _digest(path, "sha256" if self.sha256 else "md5", facts.st_size, facts.st_mtime_ns)
        return digest.startswith((self.sha256 or self.md5).lower())

    def to_dict(self) -> dict:
        """For JSON; the first entry of the provenance of an encoder that starts from these weights."""
        values = {key: value for key, value in asdict(self).items() if value not in ("", {}, ())}
        for key in ("input_spec", "download", "also"):
            values.pop(key, None)
        return {"source": self.name, **values, "data": list(self.data)}


@functools.lru_cache(maxsize=64)
def _digest(path: Path, kind: str, size: int, modified_ns: int) -> str:
    """Asked for when a file is fetched, recognised and recorded; seconds for the largest files, so kept."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


@functools.cache
def all_sources() -> Mapping[str, WeightSource]:
    """Every record by its name ``arch.tag``.

    Raises:
        ValueError: a name twice, or an architecture that is not registered.
    """
    from voco.weights import published

    found: dict[str, WeightSource] = {}
    for info in pkgutil.iter_modules(published.__path__):
        for source in importlib.import_module(f"{published.__name__}.{info.name}").SOURCES:
            # A name under a prefix is looked up where it is used: here that would import all of timm.
            known = source.arch.startswith(tuple(ENCODERS.prefixes)) or ENCODERS.canonical(source.arch) == source.arch
            if source.name in found or not known:
                raise ValueError(f"weights {source.name!r} are listed twice, or under an alias")
            found[source.name] = source
    return MappingProxyType(found)


def list_weights(pattern: str = "*") -> list[str]:
    """Names ``arch.tag`` of published weights that match a shell pattern, sorted."""
    return [name for name in sorted(all_sources()) if fnmatch.fnmatch(name, pattern)]


def sources_of(arch: str) -> list[WeightSource]:
    """All records of one architecture, which may be given by an alias."""
    arch = ENCODERS.canonical(arch)
    listed = [source for source in all_sources().values() if source.arch == arch]
    if ENCODERS[arch].family == "slices":
        from voco.weights.timm_sources import timm_sources

        return [*timm_sources(arch), *listed]
    return listed


def find_source(arch: str, tag: str) -> WeightSource:
    """The record of ``arch.tag``; ``arch`` may be an alias.

    Raises:
        InputError: unknown tag, with the known ones.
    """
    arch = ENCODERS.canonical(arch)
    sources = sources_of(arch)
    if source := next((source for source in sources if tag in (source.tag, *source.also)), None):
        return source
    known = [source.tag for source in sources]
    close = difflib.get_close_matches(tag, known, n=1)
    hint = f"; did you mean {arch}.{close[0]}?" if close else ""
    listed = f"known for {arch}: {', '.join(known)}" if known else f"none is known for {arch}"
    raise InputError(f"unknown weights tag {tag!r}{hint} ({listed}; `voco encoders` lists all)")


def source_of_file(arch: str, path: Path) -> WeightSource | None:
    """The record of a published file, by its digest or, where none is published, by its name.

    Several records may share a file and differ in how it is fed; the first is the published way.
    """
    records = sources_of(arch)
    same = next((source for source in records if source.is_published_file(path)), None)
    return same or next((source for source in records if source.file == path.name), None)


def usual_input(arch: str, format: str) -> InputSpec | None:
    """How the published files of one format are fed, where they all agree: for a file that nothing else is known of."""
    specs = [source.input_spec for source in sources_of(arch) if source.format == format]
    return specs[0] if specs and all(spec == specs[0] for spec in specs) else None
