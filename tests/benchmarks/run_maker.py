"""Run folders as the finetune stage leaves them, made from scores that are drawn: a grid in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from voco.tasks import create_task
from voco.transfer.results import constant_scores, summarise, write_predictions, write_results

VOCO = {"method": "voco3d", "data": "unlabeled CT of the user", "cases": 900, "steps": 5000, "volumes_seen": 40000,
        "results": {"position_accuracy_balanced": 0.52, "intra": 0.31},
        "cost": {"seconds_training": 7200.0, "volumes_seen": 40000, "flops_per_volume": 10**11,
                 "flops_rule": 2}}  # fmt: skip
KINETICS = {"source": "swin3d_t.kinetics400", "data": ["Kinetics-400"], "licence": "MIT"}
SYNTHETIC = "synthetic patients: nothing here says anything about real ones"
SPEC = {"axes": "SPL", "windows": [[-200.0, 400.0]], "mean": [0.0], "std": [1.0], "rgb_mean": None, "rgb_std": None}


def scores_of(labels: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities whose logits are shifted by ``gain`` for positives."""
    return 1 / (1 + np.exp(-(rng.normal(0, 1, len(labels)) + gain * (labels - 0.5))))


def write_run(
    folder: Path,
    *,
    gain: float = 1.0,
    seed: int = 0,
    provenance: Sequence[dict] = (),
    fraction: float = 1.0,
    patients: int = 60,
    marks: Sequence[str] = (),
    train: dict | None = None,
    cell: dict | None = None,
    encoder: str = "cnn3d_s",
    labels_seed: int = 1,
    trained: bool | None = None,
    weights: str | None = None,
    metric: str = "",
) -> Path:
    """One finished run of the task ``table`` with one binary label; scores of positives are higher by ``gain`` logits.

    Args:
        labels_seed: of labels: runs with the same one share a test set.
        trained: replaces the verdict.
        weights: where the encoder came from.
        metric: main metric in place of AUROC.
    """
    folder.mkdir(parents=True)
    task = create_task("table", labels=["label"], kind="binary", metric=metric)
    truth = np.random.default_rng(labels_seed).permutation(np.arange(2 * patients) % 2).astype(float)
    words = "/".join(str(entry.get("method", entry.get("source"))) for entry in provenance)
    rng = np.random.default_rng([seed, int(100 * fraction), *map(ord, words + encoder)])
    rows = pd.DataFrame({"case": [f"s{i:04d}" for i in range(2 * patients)]})
    rows["patient"], rows["unit"], rows["fold"] = "p" + rows["case"], rows["case"], 0
    rows["split"] = np.where(np.arange(2 * patients) < patients, "test", "validation")
    rows["label_label"], rows["score_label"] = truth, scores_of(truth, gain, rng)
    write_predictions(folder, rows)
    cost = {"samples_seen": 800, "seconds_training": 600.0, "peak_memory_bytes": 2**31}
    facts = {
        "encoder": encoder, "weights": None, "provenance": [], "parameters_encoder": 505116, "mode": "full",
        "view": "each study stretched to 24 x 32 x 32 voxels", "fraction": fraction, "seed": seed,
        "patients": {"0": {"train": round(200 * fraction), "validation": patients, "test": patients}},
        "counts": {"scans": 340, "studies": 336, "patients": 320, "rejected_scans": 4},
        "training": {"0": {"last_step": 100, "cost": cost}},
        "split_file": str(folder / "splits.csv"),
    }  # fmt: skip
    constants = constant_scores(task, pd.DataFrame({"label_label": truth, "fold": 0}))
    results = summarise(task, rows, split="test", constants=constants, looks=2, marks=marks, facts=facts, n=100)
    if trained is not None:
        results["verdict"] |= {"trained": trained, "text": "did not train" if not trained else "trained"}
    write_results(folder, results)
    settings = {
        "mode": "full",
        "view": "resize",
        "fraction": fraction,
        "seed": seed,
        "out": str(folder),
        "task": {"name": "table"},
    }
    settings |= {"encoder": {"name": encoder, "weights": weights}, "train": {"lr": 0.001, "steps": 100} | (train or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    session = {"started": "2026-05-01T10:00:00Z", "state": "finished", "git_commit": "0" * 40, "device": "cpu",
               "versions": {"python": "3.11.7", "torch": "2.13.0"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"state": "finished", "sessions": [session], "wall_seconds": 700}))
    parts = ["case,patient,fold,split,in_fraction"]
    parts += [f"{c},{p},0,{s},1" for c, p, s in zip(rows["case"], rows["patient"], rows["split"])]
    parts += [f"t{i},pt{i},0,train,{int(i < 200 * fraction)}" for i in range(200)]
    (folder / "splits.csv").write_text("\n".join(parts) + "\n")
    (folder / "leaks.csv").write_text("case,verdict,evidence\n" + "".join(f"{c},clean,\n" for c in rows["case"]))
    (folder / "rejected.csv").write_text("path,reason\na,cannot be read: no header\nb,cannot be read: empty\n")
    (folder / "encoder").mkdir()
    history = [*provenance, {"method": "finetune table"}]
    config = {"format": "voco-encoder", "arch": "cnn3d_s", "arguments": {}, "input_spec": SPEC, "dtype": "float32"}
    (folder / "encoder" / "config.json").write_text(json.dumps(config | {"provenance": history}))
    if cell is not None:
        (folder / "cell.json").write_text(json.dumps(cell))
    return folder


def write_grid(root: Path, seeds: int = 5, fractions: Sequence[float] = (0.1, 1.0), patients: int = 200, **kw) -> Path:
    """Scratch, Kinetics, VoCo and the chain, with gains that rise in this order, at some shares of labels."""
    sources = {"scratch": (), "kinetics": (KINETICS,), "voco": (VOCO,), "chain": (KINETICS, VOCO)}
    for place, (name, provenance) in enumerate(sources.items()):
        for fraction in fractions:
            for seed in range(seeds):
                gain = 0.5 + 0.5 * place + 0.6 * np.log10(10 * fraction)
                folder = root / f"{name}-{fraction:g}-{seed}"
                write_run(
                    folder, gain=gain, seed=seed, provenance=provenance, fraction=fraction, patients=patients, **kw
                )
    return root
