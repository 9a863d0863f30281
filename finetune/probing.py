"""Linear probe and nearest neighbours: a head on features that are computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finetune.features import feature_folder, study_features
from finetune.scoring import Predictions, score_part
from finetune.training import FoldRun, autocast_dtype, count_classes, weigh_classes
from voco.transfer.artifact import build_model
from voco.transfer.features import pool_vectors
from voco.transfer.probes import linear_probe


def probe_fold(run: FoldRun, cache: Path):
    """Fit the head of ``--mode linear`` or ``knn`` on a fold; returns the model, or None after a stop was asked for."""
    config, accelerator, task = run.config, run.accelerator, run.task
    mode, probe = config["mode"], config["probe"]
    plain = run.build_model()
    plain.to(accelerator.device).eval()
    train = _features(run, plain, run.train, cache)
    if run.stop_asked():
        return None
    x, targets, patients = _training_set(run, plain, train)
    run.facts |= {"units": len(x), "feature_width": int(x.shape[1]), "chosen_among": 1}

    def model_with_head(**kw):
        model = build_model(plain.encoder, task, plain.options, learn=plain.learn, chunk=plain.chunk, mode=mode, **kw)
        return model.to(accelerator.device).eval()

    if mode == "knn":
        model = model_with_head(bank=len(x), probe=(probe.neighbours, probe.temperature))
        fitted = type(model.head).fit(
            task.outputs, torch.from_numpy(x), {k: torch.from_numpy(v) for k, v in targets.items()}, probe.neighbours,
            probe.temperature,
        )  # fmt: skip
        model.head.load_state_dict(fitted.state_dict())
        return model
    model = model_with_head()
    mean, std = x.mean(0), x.std(0)
    std[std < 1e-6] = 1.0
    scaler = model.neck[0]
    scaler.mean.copy_(torch.from_numpy(mean))
    scaler.std.copy_(torch.from_numpy(std))
    weights = weigh_classes(run, count_classes(task, targets))
    chosen = _fit_head(model, task.outputs, (x - mean) / std, targets, patients, probe, weights)
    run.facts |= {"regularization": chosen, "class_weights": weights}
    return model


def score_probe(run: FoldRun, model, studies, split: str, cache: Path) -> Predictions:
    """Predictions of a fitted probe, from features that are on disk or computed now."""
    from voco.transfer.predict import score_features

    at_hand = {study.id: vectors for study, vectors in zip(studies, _features(run, model, studies, cache))}

    def score(study):
        with torch.no_grad():
            vectors = torch.from_numpy(at_hand[study.id]).to(run.accelerator.device)
            return score_features(model, run.task, vectors, run.view.windows(study.shape))

    return score_part(
        studies, score, run.task, run.view, fold=run.fold, split=split, learn=model.learn, accelerator=run.accelerator
    )


def _features(run: FoldRun, model, studies, cache: Path) -> list[np.ndarray]:
    accelerator = run.accelerator
    folder = feature_folder(cache, model, run.view, accelerator.mixed_precision)
    return study_features(studies, model, run.view, folder, accelerator, autocast_dtype(accelerator), run.say)


def _training_set(
    run: FoldRun, model, features: list[np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Vectors (n, F) of what is learned, studies or windows, their targets per output, and their patients."""
    names = [output.name for output in run.task.outputs]
    patients = np.array([study.labeled.patient for study in run.train])
    if model.learn == "study":
        rows = [pool_vectors(vectors, model.options.pooling) for vectors in features]
        return np.stack(rows), {n: np.array([study.targets[n] for study in run.train]) for n in names}, patients
    rows, labels, owners = [], [], []
    for study, patient, vectors in zip(run.train, patients, features):
        for start, vector in zip(run.view.windows(study.shape), vectors):
            found = study.window_targets(run.task, run.view, int(start[0]))
            if any(np.isfinite(value) for value in found.values()):
                rows.append(vector)
                labels.append(found)
                owners.append(patient)
    return np.stack(rows), {n: np.array([row[n] for row in labels]) for n in names}, np.array(owners)


def _fit_head(model, outputs, x, targets, patients, probe, weights) -> dict[str, float]:
    """Fit the linear layer of each output; returns the C that the training patients chose for it."""
    chosen = {}
    for output in outputs:
        layer, y = model.head.layer(output.name), targets[output.name]
        weight, bias = np.zeros((output.width, x.shape[1])), np.zeros(output.width)
        if np.isfinite(y).any():
            by_class = dict(enumerate((weights or {}).get(output.name, ()))) or None
            fit = linear_probe(output, x, y, grid=probe.regularization, class_weight=by_class, groups=patients)
            weight = fit.weight / fit.std
            bias, chosen[output.name] = fit.bias - weight @ fit.mean, fit.C
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return chosen
