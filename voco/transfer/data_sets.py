"""Public data sets by one short name each, and which of them lie in which others.

The names are those of ``WeightSource.data`` and ``Task.data_sets``. Sources of what is said here: the page or
table that stands beside each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Photographs, videos and magnetic resonance: no CT scan of anybody can be in them. Pictures gathered from all over the
# web (LAION, WebLI, …) are not listed: nobody can say so of them.
NOT_CT = (
    *("ImageNet-1k", "ImageNet-12k", "ImageNet-22k", "YFCC-100M", "YFCC-15M", "Instagram-1B", "SA-1B", "SAT-493M"),
    *("IG-65M", "Kinetics-400", "Kinetics-600", "Kinetics-700", "Kinetics-710", "Moments in Time", "STAIR Actions"),
    *("Something-Something v2", "UCF50", "UCF101", "OpenMind"),
)
CT = (
    *("LIDC-IDRI", "LUNA16", "NLST", "CT-RATE", "TCIA-Covid19", "STOIC", "MELA"),
    *("StonyBrookChestCT", "CT-Colonography", "BTCV", "FLARE23", "WORD", "AMOS22", "TotalSegmentator", "PANORAMA"),
    *("AbdomenAtlas-1.0", "AbdomenAtlas-1.1", "DeepLesion", "HNSCC", "OPC-Radiomics", "HeadNeckCT", "QIN-HeadNeck"),
    *("TCGA-HNSC", "VoComni", "PreCT-160K", "RSNA-STR-PE-2020", "RSNA-2023-Abdominal-Trauma", "ImageCLEF-TB-2021"),
    *("CC-CCII", "Merlin Abdominal CT", "CTRgDB"),
)
_ALIASES = {
    "LIDC": "LIDC-IDRI",
    "LUNA": "LUNA16",
    "RSNA-PE": "RSNA-STR-PE-2020",
    "RSNA-STR-PE": "RSNA-STR-PE-2020",
    "RSNA-2020-PE": "RSNA-STR-PE-2020",
    "RSNA-STR-Pulmonary-Embolism-2020": "RSNA-STR-PE-2020",
    "RSPECT": "RSNA-STR-PE-2020",
    "rsna-str-pulmonary-embolism-detection": "RSNA-STR-PE-2020",
    "RSNA-2023": "RSNA-2023-Abdominal-Trauma",
    "RSNA-Trauma": "RSNA-2023-Abdominal-Trauma",
    "RSNA-Trauma-2023": "RSNA-2023-Abdominal-Trauma",
    "RSNA-Abdominal-Trauma-2023": "RSNA-2023-Abdominal-Trauma",
    "rsna-2023-abdominal-trauma-detection": "RSNA-2023-Abdominal-Trauma",
    "RATIC": "RSNA-2023-Abdominal-Trauma",
    "ImageCLEF-TB": "ImageCLEF-TB-2021",
    "ImageCLEF-2021-TB": "ImageCLEF-TB-2021",
    "TBT-2021": "ImageCLEF-TB-2021",
    "TotalSegmentatorV2": "TotalSegmentator",
    "AMOS": "AMOS22",
    "FLARE2023": "FLARE23",
    "AbdomenAtlas1.0Mini": "AbdomenAtlas-1.0",
    "AbdomenAtlas1.1Mini": "AbdomenAtlas-1.1",
}
# Each name with what it holds scans of. Read both ways: a part of what was trained on was seen, and of what was trained
# on a part, some scans were.
_HOLDS = {
    # 888 of the 1,018 series, those up to 2.5 mm thick (luna16.grand-challenge.org/Data)
    "LIDC-IDRI": ("LUNA16",),
    # cases 1 to 5,195 are AbdomenAtlas 1.0; the rest are masks for scans of the RSNA 2023 challenge (its data page)
    "AbdomenAtlas-1.1": ("AbdomenAtlas-1.0", "RSNA-2023-Abdominal-Trauma"),
    # table of the public code (Luffy03/Large-Scale-Medical, Self-supervised/assets/table1.png)
    "PreCT-160K": (
        *("BTCV", "TCIA-Covid19", "LUNA16", "FLARE23", "HNSCC", "STOIC", "LIDC-IDRI", "TotalSegmentator", "WORD"),
        *("AMOS22", "DeepLesion", "PANORAMA", "AbdomenAtlas-1.0", "OPC-Radiomics", "HeadNeckCT", "QIN-HeadNeck"),
        *("TCGA-HNSC", "CT-Colonography", "MELA", "StonyBrookChestCT", "CT-RATE", "NLST"),
    ),
}


def _plain(name: str) -> str:
    return re.sub(r"[\s._-]+", "", name.lower())


_KNOWN = {_plain(name): name for name in (*NOT_CT, *CT)}
_KNOWN |= {_plain(alias): name for alias, name in _ALIASES.items()}
_NOT_CT = frozenset(NOT_CT)


def canonical_name(name: str) -> str | None:
    """The one name of a data set, however it is written; None for a set that is not public or not known here."""
    return _KNOWN.get(_plain(name))


def is_not_ct(name: str) -> bool:
    """Whether the data set holds no CT at all: photographs, videos, magnetic resonance."""
    return canonical_name(name) in _NOT_CT


def with_parts(names: Iterable[str]) -> frozenset[str]:
    """The data sets and all that they hold, by their one name; unknown names stay as they are."""
    found, waiting = set(), [canonical_name(name) or name for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_HOLDS.get(name, ()))
    return frozenset(found)


def shared(first: Iterable[str], second: Iterable[str]) -> frozenset[str]:
    """Data sets through which two lists have scans in common."""
    return with_parts(first) & with_parts(second)


def named_in_path(path: str) -> frozenset[str]:
    """Data sets that folders of a path are named after, such as ``/data/LIDC-IDRI/…``."""
    return frozenset(name for part in path.replace("\\", "/").split("/") if (name := canonical_name(part)))
