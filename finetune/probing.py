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
from voco.transfer.probes import fit_probe


def probe_fold(run: FoldRun, cache: Path):
    """Fit the head of ``--mode linear`` or ``knn`` on a fold; returns the model, or None after a stop was asked for."""
    config, accelerator, task = run.config, run.accelerator, run.task
    mode, probe = config["mode"], config["probe"]
    plain = run.build_model()
    plain.to(accelerator.device).eval()
    train, validation = (_features(run, plain, studies, cache) for studies in (run.train, run.validation))
    if run.stop_asked():
        return None
    x, targets = _training_set(run, plain, train)
    run.facts |= {"units": len(x), "feature_width": int(x.shape[1])}

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
    trials = []
    for c in config["probe"].regularization if run.early_stopping else [_middle(probe.regularization)]:
        layers = _fit(task.outputs, (x - mean) / std, targets, c, weights)
        _fill(model, layers)
        value = None
        if run.early_stopping:
            scored = score_from_features(run, model, run.validation, validation, "validation")
            value = task.main_value(task.to_units(scored.frame()))
        trials.append((c, value, layers))
    defined = [t for t in trials if t[1] is not None and np.isfinite(t[1])]
    # of equally good ones, the most regularised
    best = max(defined, key=lambda t: (t[1] if task.higher_is_better else -t[1], -t[0])) if defined else trials[0]
    _fill(model, best[2])
    run.facts |= {
        "regularization": best[0],
        "regularization_tried": {str(c): value for c, value, _ in trials},
        "class_weights": weights,
    }
    return model


def score_probe(run: FoldRun, model, studies, split: str, cache: Path) -> Predictions:
    """Predictions of a fitted probe, from features that are on disk or computed now."""
    return score_from_features(run, model, studies, _features(run, model, studies, cache), split)


def _features(run: FoldRun, model, studies, cache: Path) -> list[np.ndarray]:
    accelerator = run.accelerator
    folder = feature_folder(cache, model, run.view, accelerator.mixed_precision)
    return study_features(studies, model, run.view, folder, accelerator, autocast_dtype(accelerator), run.say)


def score_from_features(run: FoldRun, model, studies, features, split: str) -> Predictions:
    """Predictions from window vectors that are at hand."""
    from voco.transfer.predict import score_features

    at_hand = {study.id: vectors for study, vectors in zip(studies, features)}

    def score(study):
        with torch.no_grad():
            vectors = torch.from_numpy(at_hand[study.id]).to(run.accelerator.device)
            return score_features(model, run.task, vectors, run.view.windows(study.shape))

    return score_part(
        studies, score, run.task, run.view, fold=run.fold, split=split, learn=model.learn, accelerator=run.accelerator
    )


def _training_set(run: FoldRun, model, features: list[np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vectors (n, F) of what is learned, studies or windows, and their targets per output."""
    names = [output.name for output in run.task.outputs]
    if model.learn == "study":
        rows = [pool_vectors(vectors, model.options.pooling) for vectors in features]
        return np.stack(rows), {n: np.array([study.targets[n] for study in run.train]) for n in names}
    rows, labels = [], []
    for study, vectors in zip(run.train, features):
        for start, vector in zip(run.view.windows(study.shape), vectors):
            found = study.window_targets(run.task, run.view, int(start[0]))
            if any(np.isfinite(value) for value in found.values()):
                rows.append(vector)
                labels.append(found)
    return np.stack(rows), {n: np.array([row[n] for row in labels]) for n in names}


def _fit(outputs, x, targets, c: float, weights) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight (width, F) and bias (width,) of the linear layer of each output."""
    layers = {}
    for output in outputs:
        known = np.isfinite(targets[output.name])
        if not known.any():
            layers[output.name] = np.zeros((output.width, x.shape[1])), np.zeros(output.width)
            continue
        by_class = dict(enumerate((weights or {}).get(output.name, ()))) or None
        probe = fit_probe(output, x[known].astype(np.float64), targets[output.name][known], c, by_class)
        weight = probe.weight / probe.std
        layers[output.name] = weight, probe.bias - weight @ probe.mean
    return layers


def _fill(model, layers) -> None:
    with torch.no_grad():
        for name, (weight, bias) in layers.items():
            layer = model.head.layer(name)
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))


def _middle(values: list[float]) -> float:
    """Without validation nothing can be chosen: the middle of the list."""
    return sorted(values)[len(values) // 2]
