"""The reading sessions of four readers, as the XML files of LIDC-IDRI hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from voco.short_repr import short_repr

_NAMESPACE = "http://www.nih.gov"
CHARACTERISTICS = (
    "subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture",
    "malignancy",
)  # fmt: skip


@short_repr
@dataclass
class Session:
    """One reader's marks.

    Attributes:
        nodules: per nodule of 3 mm or more: its name, slice to outline (n, 2), ratings by ``CHARACTERISTICS``.
        small: per nodule under 3 mm: its name, slice, (column, row).
        others: per non-nodule of 3 mm or more: its name, slice, (column, row).
    """

    nodules: list[tuple[str, dict[int, np.ndarray], dict[str, int]]] = field(default_factory=list)
    small: list[tuple[str, int, tuple[int, int]]] = field(default_factory=list)
    others: list[tuple[str, int, tuple[int, int]]] = field(default_factory=list)


def write_xml(path: Path, study: str, series: str, z_mm: list[float], sops: list[str], sessions: list[Session]) -> Path:
    """Write the sessions of one series.

    Args:
        path: file.
        study, series: instance UIDs.
        z_mm: ImagePositionPatient z per slice.
        sops: SOPInstanceUID per slice.
        sessions: one per reader.
    """
    root = ET.Element("LidcReadMessage", {"xmlns": _NAMESPACE, "uid": f"{series}.0"})
    header = ET.SubElement(root, "ResponseHeader")
    for name, text in (
        ("Version", "1.7"),
        ("MessageId", "1"),
        ("DateRequest", "2000-01-01"),
        ("TimeRequest", "12:00:00"),
        ("RequestingSite", "removed"),
        ("ServicingSite", "removed"),
        ("TaskDescription", "Second unblinded read"),
        ("CtImageFile", "removed"),
        ("SeriesInstanceUid", series),
        ("StudyInstanceUID", study),
        ("DateService", "2000-01-01"),
        ("TimeService", "12:00:00"),
        ("ResponseDescription", "1 - Reading complete"),
    ):
        ET.SubElement(header, name).text = text

    def place(parent, k: int) -> None:
        ET.SubElement(parent, "imageZposition").text = f"{z_mm[k]:.6f}"
        ET.SubElement(parent, "imageSOP_UID").text = sops[k]

    def point(parent, name: str, xy) -> None:
        element = ET.SubElement(parent, name)
        ET.SubElement(element, "xCoord").text = str(int(xy[0]))
        ET.SubElement(element, "yCoord").text = str(int(xy[1]))

    for number, session in enumerate(sessions):
        node = ET.SubElement(root, "readingSession")
        ET.SubElement(node, "annotationVersion").text = "3.12"
        ET.SubElement(node, "servicingRadiologistID").text = f"anonymous-{number}"
        outlined = [(name, contours, ratings) for name, contours, ratings in session.nodules]
        outlined += [(name, {k: np.array([xy])}, None) for name, k, xy in session.small]
        for name, contours, ratings in outlined:
            nodule = ET.SubElement(node, "unblindedReadNodule")
            ET.SubElement(nodule, "noduleID").text = name
            if ratings is not None:
                box = ET.SubElement(nodule, "characteristics")
                for key in CHARACTERISTICS:
                    ET.SubElement(box, key).text = str(ratings[key])
            for k in sorted(contours, reverse=True):
                roi = ET.SubElement(nodule, "roi")
                place(roi, k)
                ET.SubElement(roi, "inclusion").text = "TRUE"
                for xy in contours[k]:
                    point(roi, "edgeMap", xy)
        for name, k, xy in session.others:
            other = ET.SubElement(node, "nonNodule")
            ET.SubElement(other, "nonNoduleID").text = name
            place(other, k)
            point(other, "locus", xy)
    ET.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)
    return path
