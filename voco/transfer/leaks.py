"""Whether the cases of a task were seen in the pretraining of an encoder, case by case, with the evidence.

What is known of a pretraining are fingerprints of its scans (runs of this project), or the list of its public data sets
(published weights). Where neither is known, the verdict is ``unknown``, which is not ``clean``. See docs/leaks.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voco.data.fingerprint import Fingerprints, data_set_digest, nearest
from voco.errors import InputError
from voco.transfer.data_sets import canonical_name, is_not_ct, shared, with_parts

if TYPE_CHECKING:
    import pandas as pd

    from voco.data.prepare import PreparedEntry

# From worst to best; a case gets the worst that any of the trainings gives it.
VERDICTS = ("seen", "near-duplicate", "same patient", "same data set", "unknown", "clean")
REFUSED = ("seen", "near-duplicate")
FILE = "leaks.csv"
# Measured in docs/leaks.md: other patients stay below, the same scan stored otherwise lies above.
NEAR_DUPLICATE = 0.98
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """One training that an encoder went through.

    Attributes:
        name: for people.
        fingerprints: of its scans; None where it left none.
        data_sets: names of its public data sets; None where they are not known.
        why_unknown: reason, where neither is known.
    """

    name: str
    fingerprints: Fingerprints | None = None
    data_sets: tuple[str, ...] | None = None
    why_unknown: str = ""


def sources_of(encoder) -> list[Source]:
    """The trainings of an encoder, oldest first; none for one that starts from scratch.

    Args:
        encoder: a ``voco.encoders.Encoder``, or the path of an encoder or run folder.

    Raises:
        InputError: a path that holds no encoder, or a damaged file of fingerprints.
    """
    if isinstance(encoder, str | Path):
        from voco.weights.folder import read_config, read_fingerprints

        config = read_config(encoder)
        if config is None:
            raise InputError(f"{encoder} is no encoder or run folder: it has no config.json of an encoder")
        history, files = config["provenance"], read_fingerprints(encoder)
    else:
        history, files = encoder.provenance, encoder.fingerprints
    return [_source(number, entry, files) for number, entry in enumerate(history, 1)]


def _source(number: int, entry: dict, files: dict[str, bytes]) -> Source:
    title = entry.get("method") or entry.get("source") or "training"
    name = f"training {number} ({title})"
    if file := entry.get("fingerprints"):
        if file not in files:
            return Source(name, why_unknown=f"its {file} is missing beside the encoder")
        return Source(name, fingerprints=Fingerprints.from_bytes(files[file], file))
    if entry.get("method") == "video":
        return Source(name, data_sets=())  # clips
    if "method" in entry:
        sets = tuple(map(str, entry.get("data_sets", ())))
        return Source(name, data_sets=sets, why_unknown="the run left no fingerprints of its scans")
    if entry.get("file_is_the_published_one") is False:
        return Source(name, why_unknown=f"its file {entry.get('file')} is not the published one")
    names = entry.get("data") or ([entry["dataset"]] if entry.get("dataset") else [])
    if isinstance(names, str):
        names = [names]
    if "unknown" in names:
        return Source(
            name, data_sets=tuple(map(str, names)), why_unknown="its authors do not say all it was trained on"
        )
    if strange := [item for item in names if canonical_name(str(item)) is None]:
        return Source(
            name, data_sets=tuple(map(str, names)), why_unknown=f"what {', '.join(map(str, strange))} holds is unknown"
        )
    if not names:
        return Source(name, why_unknown="where its weights come from is not known")
    return Source(name, data_sets=tuple(map(str, names)))


class LeakGuard:
    """Compares cases with what an encoder was trained on.

    Args:
        encoder: a ``voco.encoders.Encoder``, or the path of an encoder or run folder.
        threshold: correlation of signatures from which on two scans count as near-duplicates.

    Raises:
        InputError: a path that holds no encoder, or a damaged file of fingerprints.
    """

    def __init__(self, encoder, *, threshold: float = NEAR_DUPLICATE):
        self.sources = sources_of(encoder)
        self.threshold = threshold

    def verdicts(
        self, entries: Sequence[PreparedEntry] | Fingerprints, data_sets: Sequence[str], names: Sequence[str] = ()
    ) -> pd.DataFrame:
        """One row per case.

        Args:
            entries: prepared scans of the task, or their fingerprints.
            data_sets: names of the public data sets that the cases come from (``Task.data_sets``), or any other name
                for data of one's own; empty where nobody said, and then a list of public sets proves nothing.
            names: of the cases, with fingerprints; by default the ids of the entries.

        Returns:
            Columns case, verdict (one of ``VERDICTS``) and evidence, a sentence.
        """
        import pandas as pd

        if isinstance(entries, Fingerprints):
            cases, names = entries, list(names) or [str(i) for i in range(len(entries))]
        else:
            names = [entry.case.id for entry in entries]
            needed = any(source.fingerprints is not None for source in self.sources)
            cases = Fingerprints.of_entries(entries) if needed else None
        best = [(len(VERDICTS) - 1, "the encoder was trained from scratch")] * len(names)
        found = [self._judge(source, cases, len(names), tuple(data_sets)) for source in self.sources]
        if found:
            best = [min(column, key=lambda pair: pair[0]) for column in zip(*found)]
        rows = [(name, VERDICTS[rank], evidence) for name, (rank, evidence) in zip(names, best)]
        return pd.DataFrame(rows, columns=["case", "verdict", "evidence"])

    def _judge(self, source: Source, cases, count: int, data_sets: tuple[str, ...]) -> list[tuple[int, str]]:
        """(rank, evidence) of every case by one source."""
        rank, evidence = self._of_data_sets(source, data_sets)
        rows = [(VERDICTS.index(rank), f"{source.name}: {evidence}")] * count
        if source.fingerprints is None:
            return rows
        seen = source.fingerprints
        used, held = np.flatnonzero(seen.trained), np.flatnonzero(~seen.trained)
        by_voxels = {bytes(seen.voxels[i]): int(i) for i in used}
        held_out = {bytes(seen.voxels[i]) for i in held}
        patients = {bytes(row) for row in seen.patients[used] if row.any()}
        score, where = nearest(cases.signatures, seen.signatures[used])
        for i in range(count):
            voxels, number = bytes(cases.voxels[i]), f"of {len(seen)}"
            if voxels in by_voxels:
                found = ("seen", f"scan {by_voxels[voxels]} {number} has the same voxels")
            elif score[i] >= self.threshold:
                near = int(used[where[i]])
                found = ("near-duplicate", f"scan {near} {number} looks the same (correlation {score[i]:.3f})")
            elif bytes(cases.patients[i]) in patients:
                found = ("same patient", "another scan of a patient of this name was trained on")
            elif voxels in held_out:
                found = (rank, f"held out of that training, so not trained on; {evidence}")
            else:
                continue
            rows[i] = (VERDICTS.index(found[0]), f"{source.name}: {found[1]}")
        return rows

    def _of_data_sets(self, source: Source, data_sets: tuple[str, ...]) -> tuple[str, str]:
        if source.fingerprints is not None:
            # Digests: a set is found under the name of any part of the task's sets, or of any set that holds it.
            mine = {data_set_digest(name): name for name in _around(data_sets)}
            if common := sorted(mine[d] for d in source.fingerprints.data_sets & set(mine)):
                return "same data set", f"it used scans of {', '.join(common)}, but none like this one"
            return "clean", f"none of its {int(source.fingerprints.trained.sum())} scans is like this one"
        listed = source.data_sets or ()
        if common := sorted(shared(listed, data_sets)):
            return "same data set", f"it was trained on {', '.join(common)}"
        if source.why_unknown:
            return "unknown", source.why_unknown
        if all(is_not_ct(name) for name in listed):
            return "clean", f"it saw no CT ({', '.join(listed) or 'videos'})"
        if not data_sets:
            return "unknown", "it was trained on public CT, and which data set the cases come from was not said"
        return "clean", f"{', '.join(data_sets)} is not among its data sets"


def _around(names: Sequence[str]) -> set[str]:
    """The sets, what they hold, and every known set that has a part in common with them."""
    from voco.transfer.data_sets import CT

    own = with_parts(names)
    return set(own) | {name for name in CT if with_parts([name]) & own} | set(names)


def summary(verdicts: pd.DataFrame) -> str:
    """One line: how many cases have which verdict, worst first."""
    count = Counter(verdicts["verdict"])
    return "; ".join(f"{count[name]} {name}" for name in VERDICTS if count[name]) or "no case"


def write_leaks(verdicts: pd.DataFrame, out: str | Path) -> Path:
    """Write ``leaks.csv`` into a folder; returns its path."""
    path = Path(out) / FILE
    part = path.with_suffix(".part")
    verdicts.to_csv(part, index=False)
    part.replace(path)
    return path


def refuse_seen(verdicts: pd.DataFrame, allow_seen: bool = False) -> None:
    """Stop before a test set is opened whose scans the encoder has seen.

    Args:
        verdicts: of the test cases.
        allow_seen: go on all the same.

    Raises:
        InputError: a case is ``seen`` or a ``near-duplicate`` of a scan that was seen.
    """
    bad = verdicts[verdicts["verdict"].isin(REFUSED)]
    if allow_seen or bad.empty:
        return
    lines = [f"  {row.case}: {row.verdict}, {row.evidence}" for row in bad.head(_SHOWN).itertuples()]
    more = [f"  and {len(bad) - _SHOWN} more, see {FILE}"] if len(bad) > _SHOWN else []
    raise InputError(
        f"{len(bad)} of {len(verdicts)} test scans were in the training of the encoder ({summary(verdicts)}):\n"
        + "\n".join([*lines, *more])
        + "\nTake another encoder, or one pretrained without these patients (pretrain/run.py --data.exclude FILE); "
        "--allow_seen opens the test set all the same, and the results will say so"
    )
