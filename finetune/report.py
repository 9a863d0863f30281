"""What a run leaves when all folds are done: predictions, results, pictures, and the last words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.cohort import pick
from finetune.testset import split_file

if TYPE_CHECKING:
    import pandas as pd

    from finetune.folds import Session


def finish(session: Session) -> None:
    """Write ``predictions.csv``, ``predictions_images.parquet``, ``results.json`` and figures; print what was found."""
    from finetune.figures import draw_figures
    from finetune.folds import read_scores
    from voco.transfer.results import summarise, text_table, write_images, write_predictions, write_results

    cases, images = read_scores(session)
    write_predictions(session.out, cases)
    if images is not None:
        write_images(session.out, images)
    train = training_labels(session)
    results = summarise(
        session.task,
        cases,
        images,
        split=session.config["eval"],
        constants=_constants(session, train),
        looks=session.looks if session.config["eval"] == "test" else None,
        marks=marks(session),
        rule=session.splits.rule,
        facts=facts(session),
        n=session.config["score"].bootstrap,
        seed=session.config["seed"],
    )
    path = write_results(session.out, results)
    drawn = draw_figures(session, cases, results)
    session.say("")
    session.say(text_table(results))
    session.say("\nwrote")
    names = (
        *("predictions.csv", "predictions_images.parquet", "splits.csv", "leaks.csv", "duplicates.csv"),
        *("rejected.csv", "run.json"),
    )
    for file in (path, *(session.out / name for name in names)):
        if file.exists():
            session.say(f"  {file}")
    if drawn:
        session.say(f"  {session.out / 'figures'}   {len(drawn)} pictures")
    first = session.folder(session.splits.folds[0].number)
    session.say(f"  {first / 'encoder'}   the trained encoder, for --encoder.weights")
    session.say(
        f"score new scans: accelerate launch finetune/predict.py --model {session.out} --data.root NEW --out DIR"
    )


def training_labels(session: Session) -> pd.DataFrame:
    """Label columns and fold of the cases that were trained on."""
    import pandas as pd

    rows = []
    for fold in session.splits.folds:
        for study in pick(session.cohort, fold.ids("train")):
            labels = {o.label_column: study.targets[o.name] for o in session.task.outputs}
            rows.append({"case": study.id, "unit": study.labeled.unit, "fold": fold.number, **labels})
    return pd.DataFrame(rows)


def _constants(session: Session, train: pd.DataFrame):
    from voco.transfer.results import constant_scores

    return constant_scores(session.task, train)


def marks(session: Session) -> list[str]:
    """Remarks that every figure of this run must carry."""
    from voco.transfer.leaks import NO_MATCH, summary

    found = list(session.splits.marks)
    if drawn := session.cohort.synthetic:
        share = "" if drawn == len(session.cohort.studies) else f"{drawn} of {len(session.cohort.studies)} scans, and "
        found.append(f"synthetic patients: {share}nothing here says anything about real ones")
    elif not session.cohort.manifest.patient_level:  # anatomies of synthetic cohorts are known
        found.append("split by study, not by patient: the data set has no patient identity")
    verdicts = session.leaks
    if session.config["eval"] == "test":
        tested = {name for fold in session.splits.folds for name in fold.ids("test")}
        verdicts = verdicts[verdicts["case"].isin(tested)]
    if (verdicts["verdict"] != NO_MATCH).any():
        found.append(f"pretraining of the encoder and these cases: {summary(verdicts)} (leaks.csv)")
    if session.config["allow_seen"]:
        found.append("--allow_seen: the test set was opened although its scans or patients may have been seen")
    if session.config["tta"]:
        found.append("scores averaged over flips")
    found += sorted({f["extended"]["note"] for f in session.facts.values() if f.get("extended")})
    return found


def facts(session: Session) -> dict[str, Any]:
    """What a reader of the figures wants to know about the run."""
    config, encoder = session.config, session.encoder
    return {
        "encoder": encoder.name,
        "weights": config["encoder"].weights,
        "provenance": [entry.get("method") or entry.get("source") for entry in encoder.provenance],
        "parameters_encoder": sum(p.numel() for p in encoder.parameters()),
        "mode": config["mode"],
        "view": session.view.text,
        "learn": config["learn"],
        "input_windows": [list(pair) for pair in encoder.input_spec.windows],
        "exposure": session.exposure,
        "fraction": config["fraction"],
        "fraction_val": config["fraction_val"],
        "seed": config["seed"],
        "split_seed": config["split"].seed,
        "split_file": str(split_file(session)),
        "patients": {str(f.number): session.splits.counts(f.number) for f in session.splits.folds},
        "counts": session.cohort.counts,
        "data_fingerprint": session.cohort.fingerprint,
        "training": {str(fold): values for fold, values in sorted(session.facts.items())},
    }
