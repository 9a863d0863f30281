"""The test set is opened on purpose: after the leak guard has looked, and with an entry in the ledger."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from voco.errors import InputError

if TYPE_CHECKING:
    from finetune.folds import Session

SPLIT_FILE = "splits.csv"


def split_file(session: Session) -> Path:
    """The split that the ledger lies beside: the one that was given, or the run's own."""
    given = session.config["split"].file
    return Path(given) if given else session.out / SPLIT_FILE


def write_split(session: Session) -> None:
    """Leave the split in the run folder, to be given back as ``--split.file``."""
    from voco.data.split_files import write_splits

    if session.accelerator.is_main_process:
        write_splits(session.out / SPLIT_FILE, session.splits)


def data_set_names(cohort, task) -> tuple[str, ...]:
    """Public sets that the scans of a cohort are of; without a task nobody knows."""
    # synthetic patients in a public set's layout are not that set
    return ("phantom",) if cohort.synthetic else (task.data_sets if task is not None else ())


def locate(verdicts, cohort):
    """A table of the leak guard with the patient and the path of each case, as every other table of a run has them."""
    studies = [cohort.studies[case].labeled for case in verdicts["case"]]
    columns = {"patient": [s.patient for s in studies], "path": [s.case.path for s in studies]}
    return verdicts.assign(**columns)[["case", *columns, "verdict", "evidence"]]


def check_leaks(session: Session) -> None:
    """Compare every case of the cohort with what the encoder was trained on; writes ``leaks.csv``."""
    from voco.transfer.leaks import LeakGuard, summary, write_leaks

    entries = [session.cohort.entries[name] for name in sorted(session.cohort.studies)]
    names = data_set_names(session.cohort, session.task)
    session.leaks = locate(LeakGuard(session.encoder).verdicts(entries, names), session.cohort)
    if session.accelerator.is_main_process:
        write_leaks(session.leaks, session.out)
    session.say(f"leak guard: {summary(session.leaks)}")


def open_test_set(session: Session, folds) -> None:
    """Refuse where the encoder has seen test scans; otherwise note the look and count the looks so far.

    The ledger lies beside the split. Another one in the cache, which runs share, tells of looks that runs with other
    folders, and so with another file of the same split, had at the same test patients.

    Raises:
        InputError: test scans were seen in pretraining, and ``--allow_seen`` is not given.
    """
    from finetune.folds import is_scored
    from voco.config import to_dict
    from voco.engine.record import git_commit
    from voco.transfer.leaks import refuse_seen
    from voco.transfer.ledger import content_hash, ledger_path, looks, open_test, test_set_hash

    tested = {fold.number: fold.ids("test") for fold in folds}
    if not any(tested.values()):
        raise InputError("--eval test: the split has no test patients; raise --split.test, or use --folds")
    names = {name for ids in tested.values() for name in ids}
    refuse_seen(session.leaks[session.leaks["case"].isin(names)], session.config["allow_seen"])
    path = split_file(session)
    unopened = [fold for fold in folds if tested[fold.number] and not is_scored(session, fold, "test")]
    if session.accelerator.is_main_process:
        scans = {number: content_hash(_voxels(session, ids)) for number, ids in tested.items() if ids}
        settings = json.dumps(to_dict(session.config), sort_keys=True, default=str)
        # an entry for every fold, so that jobs of an array count the same as one run of all folds
        for fold in unopened:
            open_test(
                path,
                config_hash=hashlib.sha256(settings.encode()).hexdigest()[:16],
                commit=git_commit() or "",
                test_set=test_set_hash(tested[fold.number]),
                content=scans[fold.number],
                out=str(session.out),
                task=session.task.name,
                fold=fold.number,
                shared=session.cache,
            )
        session.looks = max(
            looks(path, test_set_hash(tested[number]), session.cache, content) for number, content in scans.items()
        )
        if unopened:
            session.say(f"test set opened: look {session.looks} at it, noted in {ledger_path(path)}")
    session.accelerator.wait_for_everyone()


def _voxels(session: Session, ids) -> list[bytes]:
    """Hashes of the voxels of prepared scans."""
    from voco.data.fingerprint import Fingerprints

    entries = [session.cohort.entries[name] for name in ids if name in session.cohort.entries]
    return [bytes(row) for row in Fingerprints.of_entries(entries).voxels]
