"""Published weights: one record per ``arch.tag`` that says where the file is, what it expects and who made it.

Tested loading is by file: nothing here downloads.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from voco.encoders.base import ENCODERS
from voco.encoders.spec import InputSpec
from voco.encoders.swinunetr import SPEC as SWINUNETR_SPEC
from voco.errors import InputError


@dataclass(frozen=True)
class WeightSource:
    """One published file.

    Attributes:
        arch, tag: ``arch.tag`` is its name.
        file: file name as published.
        url: where the file is.
        md5: of the published file, 32 hex digits.
        input_spec: what the weights were trained on.
        licence: of the weights, as their authors state it.
        citation: the paper to cite.
        data: what they were trained on.
    """

    arch: str
    tag: str
    file: str
    url: str
    md5: str
    input_spec: InputSpec
    licence: str
    citation: str
    data: str

    @property
    def name(self) -> str:
        return f"{self.arch}.{self.tag}"

    def how_to_get(self) -> str:
        """A message for a user who has not got the file yet."""
        return (
            f"{self.name} needs its weights file: fetch {self.file} from {self.url} (md5 {self.md5}), "
            f"then pass checkpoint=PATH, or --encoder.weights PATH on a command line"
        )

    def is_published_file(self, path: Path) -> bool:
        """Whether a file is, byte for byte, the one that was published."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == self.md5

    def to_dict(self) -> dict:
        """For JSON; the first entry of the provenance of an encoder that starts from these weights."""
        values = asdict(self)
        del values["input_spec"]
        return {"source": self.name, **values}


def _voco(size: str, md5: str) -> WeightSource:
    file = f"VoCo_{size.upper()}_SSL_head.pt"
    return WeightSource(
        arch=f"swinunetr_{size}",
        tag="voco_ssl",
        file=file,
        url=f"https://huggingface.co/Luffy503/VoCo/resolve/main/{file}",
        md5=md5,
        input_spec=SWINUNETR_SPEC,
        licence="apache-2.0",
        citation="Wu et al., Large-Scale 3D Medical Image Pre-training With Geometric Context Priors, "
        "TPAMI 2026, doi:10.1109/TPAMI.2025.3639593",
        data="PreCT-160K: about 160,000 public CT volumes, self-supervised (VoCo v2)",
    )


SOURCES: dict[str, WeightSource] = {
    source.name: source
    for source in (
        _voco("b", "f80c4da2f81d700bdae3df188f2057eb"),
        _voco("l", "795095d1d43ef3808ec4c41798310136"),
        _voco("h", "76f95a474736b60bf5b8aad94643744d"),
    )
}


def list_weights(pattern: str = "*") -> list[str]:
    """Names ``arch.tag`` of published weights that match a shell pattern, sorted."""
    return [name for name in sorted(SOURCES) if fnmatch.fnmatch(name, pattern)]


def find_source(arch: str, tag: str) -> WeightSource:
    """The record of ``arch.tag``; ``arch`` may be an alias.

    Raises:
        InputError: unknown tag, with the known ones.
    """
    arch = ENCODERS.canonical(arch)
    if source := SOURCES.get(f"{arch}.{tag}"):
        return source
    known = [s.tag for s in SOURCES.values() if s.arch == arch]
    close = difflib.get_close_matches(tag, known, n=1)
    hint = f"; did you mean {arch}.{close[0]}?" if close else ""
    listed = f"known for {arch}: {', '.join(known)}" if known else f"none is known for {arch}"
    raise InputError(f"unknown weights tag {tag!r}{hint} ({listed}; all: {', '.join(sorted(SOURCES))})")
