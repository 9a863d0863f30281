"""Lines that a good encoder must beat, as run folders of their own: the same patients, predictions and figures.

    python benchmarks/cheap.py --line prior --config rsna_pe --data.root DATA --encoder.name cnn3d_s --out runs/prior
    python benchmarks/cheap.py --line metadata --config runs/y/config.yaml --split.file runs/y/splits.csv --out runs/m

Lines: prior (class shares), metadata (how a scan was made), position (place of images along z), slices (frozen 2D
features along three axes, random projection, logistic regression). Everything after --line is as for finetune/run.py;
the encoder and view named there decide how scans are prepared, so that exactly the same studies are scored, and only
the line slices computes with the encoder (--encoder.name slices/NAME).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from voco.errors import InputError
from voco.files import write_json

if TYPE_CHECKING:
    from benchmarks.cheap_lines import Fitted, Line

LINES = ("prior", "metadata", "position", "slices")
PLANES, SIDE, PROJECTION = 32, 0, 100
_CELL = "cell.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 0, or 2 for bad input."""
    from finetune.config import schema
    from voco.config import parse

    parser = argparse.ArgumentParser(
        prog="benchmarks/cheap.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--line", required=True, choices=LINES, help="which line")
    parser.add_argument("--planes", type=int, default=PLANES, help="slices along each axis (line slices)")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a slice, 0 = the encoder's (line slices)")
    parser.add_argument("--projection", type=int, default=PROJECTION, help="width of the projection (line slices)")
    own, rest = parser.parse_known_args(argv)
    try:
        run_line(own.line, parse(schema(), rest), planes=own.planes, side=own.side, projection=own.projection)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_line(name: str, config: dict, *, planes: int = PLANES, side: int = SIDE, projection: int = PROJECTION) -> Path:
    """Write one line as a run folder: predictions, results, splits, ``run.json``; a finished one is left alone.

    Args:
        name: one of ``LINES``.
        config: parsed settings of the finetune stage; ``out``, ``data``, ``task``, ``split``, ``fraction``, ``seed``
            and ``eval`` count, and what decides how scans are prepared.
        planes, side, projection: of the line ``slices``, see ``benchmarks.cheap_lines.Slices``.

    Returns:
        The folder.

    Raises:
        InputError: an unknown line, settings or data that cannot be used, or a folder of another line or run.
    """
    from finetune.config import check
    from voco.engine.lock import FolderLock
    from voco.engine.record import RunRecord

    if name not in LINES:
        raise InputError(f"unknown line {name!r}; there are {', '.join(LINES)}")
    check(config, 1)
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        if _is_done(out, name, config):
            print(f"{out}: already done", file=sys.stderr)
            return out
        record = RunRecord(out, active=True, plugins=config.get("plugins", ()))
        try:
            _write(name, config, record, {"planes": planes, "side": side, "width": projection})
        except BaseException as error:
            record.close("failed", error=f"{type(error).__name__}: {error}"[:500])
            raise
        record.close("finished")
    return out


def _is_done(out: Path, name: str, config: dict) -> bool:
    """Whether a folder holds this line with these settings, finished.

    Raises:
        InputError: it holds something else.
    """
    from finetune.config import FREE_ON_RESUME
    from voco.config import to_dict
    from voco.engine.resume import check_same_settings
    from voco.transfer.results import RESULTS

    if not (out / RESULTS).is_file():
        return False
    results = json.loads((out / RESULTS).read_text())
    if results["facts"].get("line") != name:
        raise InputError(
            f"{out} holds {results['facts'].get('line', 'a run')}, not the line {name}; choose another --out"
        )
    check_same_settings(out / "config.yaml", to_dict(config), FREE_ON_RESUME)
    record = json.loads((out / "run.json").read_text())
    return record.get("state") == "finished" and results["split"] == config["eval"]


def _write(name: str, config: dict, record, settings: dict[str, int]) -> None:
    import pandas as pd

    from finetune.cohort import pick
    from finetune.testset import check_leaks, open_test_set, write_split

    session = _session(config, record)
    line = _line(name, session, settings)
    write_split(session)
    if line.encoder:
        check_leaks(session)
    else:  # nothing was pretrained, so nothing can have been seen
        session.leaks = pd.DataFrame({"case": [], "verdict": []})
    if config["eval"] == "test":
        open_test_set(session, session.splits.folds)
    cases, images = [], []
    for fold in session.splits.folds:
        start = time.monotonic()
        parts = {part: pick(session.cohort, fold.ids(part)) for part in session.parts}
        scored = [(part, study) for part, studies in parts.items() for study in studies]
        train = pick(session.cohort, fold.ids("train"))
        found = line.fit(session.task, train, [study for _, study in scored])
        session.facts[fold.number] = (found.facts or {}) | {
            "units": len(train), "cost": {"seconds_training": round(time.monotonic() - start, 3)},
        }  # fmt: skip
        _collect(session, fold.number, scored, found, cases, images)
    _finish(name, line, session, pd.DataFrame(cases), images)


def _session(config: dict, record):
    """Data, view and split exactly as the finetune stage makes them of the same settings."""
    from finetune.cohort import prepare_studies
    from finetune.folds import Session
    from finetune.run import build_encoder, build_task, build_view
    from finetune.splitting import split_cohort
    from voco.config import save_yaml

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    out = Path(config["out"])
    task = build_task(config)
    manifest = task.read(config["data"].root)
    encoder = build_encoder(config)
    view, mask_channel = build_view(config, task, encoder)
    cache = Path(config["data"].cache or out.parent / "cache")
    cohort = prepare_studies(
        manifest, task, view, cache, mask_channel=mask_channel, workers=config["data"].workers, rank=0, world=1, say=say
    )
    cohort, splits = split_cohort(config, task, cohort, cache, rank=0, world=1, say=say)
    cohort.write(out, splits)
    save_yaml(config | {"fold": -1}, out / "config.yaml")
    cohort.check(config["data"].max_rejected)
    record.update(task=f"{task.name} v{task.version}", seed=config["seed"], processes=1,
                  data_fingerprint=cohort.fingerprint, data=cohort.counts)  # fmt: skip
    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, num_processes=1, process_index=0)
    return Session(config, task, view, cohort, splits, encoder, cache, alone, None, record, say, {})


def _line(name: str, session, settings: dict[str, int]) -> Line:
    from benchmarks import cheap_lines as lines

    if name == "prior":
        return lines.Prior()
    if name == "metadata":
        return lines.Metadata(session.cohort.manifest.root)
    if name == "position":
        return lines.Position()
    import torch

    from voco.encoders.slices import PREFIX

    if not session.encoder.name.startswith(PREFIX):
        raise InputError(
            f"the line slices takes a 2D network, --encoder.name slices/NAME (see `voco encoders 'slices/*'`), found "
            f"{session.encoder.name}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    session.record.session(device=device)
    return lines.Slices(session.encoder, session.cache, seed=session.config["seed"], device=device, **settings)


def _collect(session, fold: int, scored: Sequence, found: Fitted, cases: list, images: list) -> None:
    """Rows of the scored studies of a fold, as the finetune stage writes them."""
    from benchmarks.cheap_lines import slice_table
    from finetune.scoring import case_row
    from voco.tasks.slices import image_rows

    for k, (part, study) in enumerate(scored):
        scores = SimpleNamespace(columns={name: float(values[k]) for name, values in found.columns.items()})
        cases.append(case_row(study, scores, session.task, fold, part))
        own = found.images[k] if found.images else None
        if own is not None:
            table = slice_table(study)
            rows = image_rows(study.labeled, table, table.labels(study.labeled.slices), own)
            images.append({**rows, "fold": fold, "split": part})


def _finish(name: str, line: Line, session, cases, images: list) -> None:
    import pandas as pd

    from finetune.report import facts, marks, training_labels
    from voco.transfer.results import (
        constant_scores,
        summarise,
        text_table,
        write_images,
        write_predictions,
        write_results,
    )

    config, out = session.config, session.out
    about = facts(session) | {"mode": "cheap", "line": name}
    if not line.encoder:
        about |= {"encoder": line.title, "weights": None, "provenance": [], "parameters_encoder": 0}
    tables = pd.concat([pd.DataFrame(rows) for rows in images], ignore_index=True) if images else None
    if tables is not None:
        write_images(out, tables)
    write_predictions(out, cases)
    results = summarise(
        session.task, cases, tables, split=config["eval"],
        constants=constant_scores(session.task, training_labels(session)),
        looks=session.looks if config["eval"] == "test" else None, marks=marks(session), rule=session.splits.rule,
        facts=about, n=config["score"].bootstrap, seed=config["seed"],
    )  # fmt: skip
    # a grid that started this line has written more there
    if not (out / _CELL).is_file():
        write_json(out / _CELL, _cell(line, config), indent=1)
    path = write_results(out, results)
    session.say(f"{line.title}\n{text_table(results)}\nwrote {path}")


def _cell(line: Line, config: dict) -> dict[str, Any]:
    return {"cheap": True, "source": line.title, "fraction": config["fraction"], "seed": config["seed"]}


if __name__ == "__main__":
    sys.exit(main())
