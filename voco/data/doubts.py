"""What is doubtful about scans, told where users look: sentences for the console and the run, and series.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN = 5


def doubt_notes(entries: Iterable) -> list[str]:
    """A sentence for each doubtful scan, the first few of them, and how many there are.

    Args:
        entries: prepared scans, see ``voco.data.prepare.PreparedEntry``.
    """
    found = [f"{entry.case.path}: {note}" for entry in entries for note in entry.notes]
    more = [f"and {len(found) - _SHOWN} more sentences about doubtful scans"] if len(found) > _SHOWN else []
    return [*found[:_SHOWN], *more]


def with_doubts(rows: Sequence[dict], entries: Iterable, rejected: Iterable) -> list[dict]:
    """Rows of ``series.csv`` that also say what only the voxels showed: doubts, and why a series was rejected.

    Args:
        rows: of a manifest.
        entries: prepared scans.
        rejected: scans that could not be used, with ``path`` and ``reason``.
    """
    prepared = {(entry.case.path, entry.case.series): entry.notes for entry in entries}
    refused = {item.path: item.reason for item in rejected}
    out = []
    for row in rows:
        if row["decision"] == "kept":
            notes = prepared.get((row["path"], row["series"]))
            if notes:
                row = {**row, "reason": "; ".join([row["reason"], *notes])}
            elif notes is None and row["path"] in refused:
                row = {**row, "decision": "rejected", "reason": refused[row["path"]]}
        out.append(row)
    return out
