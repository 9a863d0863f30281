"""Does it learn? Scores of an encoder on held-out windows, and of the descriptors that it has to beat."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from voco.crops import cut
from voco.geometry import Geometry
from voco.health.report import HealthReport
from voco.health.scores import (
    Tally,
    effective_rank,
    hu_histograms,
    place_tally,
    position_tallies,
    rank_correlation,
    spread,
    standardised_cosine,
    tally_rows,
)
from voco.health.windows import PADDED_SHARE, EvalWindow, draw_queries, scenes
from voco.losses import cosine


def evaluate(
    method,
    windows: Sequence[EvalWindow],
    *,
    queries: int = 12,
    seed: int,
    batch_volumes: int = 2,
    device: torch.device | str = "cpu",
    name: str = "trained",
    shift_range: float = 0.1,
    autocast_dtype: torch.dtype | None = None,
    positions_only: bool = False,
) -> HealthReport:
    """Score a method on held-out windows. Weights, modes and random state are left as they were.

    Crops as they are give effective rank and rank correlation and, of a method that compares crops, the loss terms and
    mean cosine; of another one, how far its features spread. Crops with an intensity
    shift each, drawn independently so that brightness does not tell the place, give position accuracy, and with queries
    from the neighbouring slab disjoint accuracy. No flips or turns: an encoder is fed scans the right way up. Scores
    named ``clean_`` are without the shift, ``encoder_`` from the encoder's features instead of the projector's cosine.

    Args:
        method: has ``geometry`` and ``inspect``; ``loss_terms`` too where ``inspect`` compares crops
            (``voco.methods.base.ScanMethod``).
        windows: from ``build_eval_windows`` with the same geometry.
        queries: random crops per window.
        seed: of queries, shifts and resampling.
        batch_volumes: windows per forward pass.
        device: where the method is.
        name: of the report.
        shift_range: largest intensity shift as a share of the HU window.
        autocast_dtype: e.g. ``torch.bfloat16`` to evaluate as trained; None is float32.
        positions_only: leave out crops as they are and all that comes from them, for lines: half the work.
    """
    settings = {"batch_volumes": batch_volumes, "device": torch.device(device), "autocast_dtype": autocast_dtype}

    def compare(hu, bases, starts, shift):
        return inspect_windows(method, hu, bases, starts, shift, **settings)

    with evaluating(method):
        tallies, clean, labels = _position_scores(
            windows, method.geometry, compare, queries, seed, shift_range, clean=not positions_only
        )
        if positions_only:
            return _report(name, windows, queries, seed, tallies, {})
        patient, other = np.array([w.patient for w in windows]), {}
        features = clean["base_features"].reshape(-1, clean["base_features"].shape[-1])
        values = {"effective_rank": effective_rank(features)}
        if "cosine" in clean:
            other = _loss_tallies(method, patient, clean["cosine"], labels) | _inter_tally(method, windows, clean)
            power = getattr(getattr(method, "options", None), "reg_power", 2)
            other |= _base_tallies(patient, clean["base_cosine"], power)
        else:
            values["feature_spread"] = spread(features)
        other |= _order_tallies(patient, clean, labels)
    return _report(name, windows, queries, seed, other | tallies, values)


def evaluate_histogram(
    windows: Sequence[EvalWindow],
    geometry: Geometry,
    hu_window: tuple[float, float],
    *,
    queries: int = 12,
    seed: int,
    shift_range: float = 0.1,
    name: str = "histogram",
) -> HealthReport:
    """The line that needs no network: a 24-bin HU histogram per crop, standardised over the bases, cosine.

    Args:
        windows, geometry, queries, seed, shift_range: as for ``evaluate``; the same crops and shifts are seen.
        hu_window: (low, high) HU, the outermost of the encoder's windows (``outer_window``).
    """

    def compare(hu, bases, starts, shift):
        found = []
        for i, window in enumerate(hu):
            corners = torch.cat([bases, starts[i]])[None]
            crops = cut(torch.from_numpy(window)[None], corners, geometry.size)[0]
            shares = hu_histograms(crops, hu_window, None if shift is None else shift[i], margin=shift_range).numpy()
            found.append(standardised_cosine(shares[: len(bases)], shares[len(bases) :]))
        return {"cosine": np.stack(found)}

    scores, clean, labels = _position_scores(windows, geometry, compare, queries, seed, shift_range)
    tallies = _order_tallies(np.array([w.patient for w in windows]), clean, labels) | scores
    return _report(name, windows, queries, seed, tallies, {})


def outer_window(windows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The HU window that holds all windows of an ``InputSpec``."""
    return min(low for low, _ in windows), max(high for _, high in windows)


def calibrate_batchnorm(
    method: torch.nn.Module,
    windows: Sequence[EvalWindow],
    *,
    batch_volumes: int = 2,
    device: torch.device | str = "cpu",
) -> int:
    """``estimate_batchnorm`` from held-out windows, without labels.

    Returns:
        Number of layers calibrated; 0 for networks without BatchNorm.
    """

    def feed():
        asked = draw_queries(windows, method.geometry, method.geometry.random_crops, 0, 0.0, slabs=False)
        settings = {"batch_volumes": batch_volumes, "device": torch.device(device), "autocast_dtype": None}
        inspect_windows(method, [w.hu for w in windows], method.geometry.base_starts(), asked.starts, None, **settings)

    return estimate_batchnorm(method, feed)


def estimate_batchnorm(method: torch.nn.Module, feed: Callable[[], object]) -> int:
    """Estimate running statistics of BatchNorm layers from data, without gradients.

    A fresh network has mean 0 and variance 1 there, which cripples it in evaluation: an untrained line must not be low
    for that reason. Everything but the running statistics stays as it was.

    Args:
        feed: passes the data through ``method``, batch by batch.

    Returns:
        Number of layers calibrated; 0 for networks without BatchNorm.
    """
    layers = [
        m
        for m in method.modules()
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        return 0
    seen = {layer: [] for layer in layers}

    def normalise_by_batch(layer, inputs):
        # evaluation mode with this batch's statistics: as training mode, but on this process alone
        x = inputs[0].detach().float()
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        seen[layer].append((mean, var))
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)

    hooks = [layer.register_forward_pre_hook(normalise_by_batch) for layer in layers]
    try:
        with evaluating(method):
            feed()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, statistics in seen.items():
        if statistics:
            layer.running_mean.copy_(torch.stack([mean for mean, _ in statistics]).mean(0))
            # of all crops together: the mean variance within batches and the variance between them
            between = torch.stack([mean for mean, _ in statistics]).var(0, correction=0)
            layer.running_var.copy_(torch.stack([var for _, var in statistics]).mean(0) + between)
    return sum(bool(statistics) for statistics in seen.values())


@contextlib.contextmanager
def evaluating(method) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule gets its own mode back afterwards, also after an error."""
    modules = list(method.modules()) if isinstance(method, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes):
            module.training = mode


def inspect_windows(
    method, hu, bases, starts, shift, *, batch_volumes, device, autocast_dtype
) -> dict[str, np.ndarray]:
    """Run ``method.inspect`` over windows in batches of equal size (the last one wraps to the first windows).

    Equal, because a projector without running statistics normalises over the batch.
    """
    count, size, parts = len(hu), min(batch_volumes, len(hu)), []
    precision = (
        torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype is not None else contextlib.nullcontext()
    )
    for first in range(0, count, size):
        index = [i % count for i in range(first, first + size)]
        kept = min(size, count - first)
        batch = torch.from_numpy(np.stack([hu[i] for i in index])).to(device)
        with precision:
            found = method.inspect(
                batch, bases.to(device), starts[index].to(device), None if shift is None else shift[index].to(device)
            )
        features = found.features[:kept].float().cpu().numpy()
        compared = {"cosine": found.cosine, "base_cosine": found.base_cosine}
        parts.append(
            {
                **{key: of[:kept].float().cpu().numpy() for key, of in compared.items() if of is not None},
                "base_features": features[:, : len(bases)],
                "encoder_cosine": standardised_cosine(features[:, : len(bases)], features[:, len(bases) :]),
                "neighbour": np.roll(index, -1)[:kept],
            }
        )
        if getattr(found, "teacher_embeddings", None) is not None:
            for key, rows in (("inter_cosine", found.embeddings), ("inter_target", found.teacher_embeddings)):
                across = cosine(rows[:, len(bases) :], rows[:, : len(bases)].roll(-1, 0))
                parts[-1][key] = across[:kept].cpu().numpy()
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _loss_tallies(method, patient, similarity, labels) -> dict[str, Tally]:
    # the negative term is a mean over empty cells of one volume: queries go in groups of the size seen in training
    group = min(method.geometry.random_crops, similarity.shape[1])
    used = similarity.shape[1] // group * group
    terms = []
    for one, label in zip(similarity[:, :used], labels[:, :used]):
        one, label = (torch.from_numpy(x).float().reshape(-1, group, x.shape[-1]) for x in (one, label))
        terms.append({k: float(torch.as_tensor(v).mean()) for k, v in method.loss_terms(one, label).items()})
    return {k: tally_rows(patient, np.array([t[k] for t in terms])) for k in terms[0]}


def _inter_tally(method, windows, found) -> dict[str, Tally]:
    """Queries of a window against the bases of its neighbour in the batch, where that is another scan."""
    if "inter_cosine" not in found or getattr(getattr(method, "options", None), "inter_weight", 1.0) == 0:
        return {}
    scan, patient = (np.array([getattr(w, name) for w in windows]) for name in ("scan", "patient"))
    pairs = scan[found["neighbour"]] != scan
    if not pairs.any():
        return {}
    target = np.maximum(found["inter_target"][pairs], 0.0)
    return {"inter": _loss_tallies(method, patient[pairs], found["inter_cosine"][pairs], target)["intra"]}


def _order_tallies(patient, found, labels) -> dict[str, Tally]:
    return {
        f"{prefix}rank_correlation": tally_rows(patient, rank_correlation(found[key], labels).mean(axis=-1))
        for prefix, key in (("", "cosine"), ("encoder_", "encoder_cosine"))
        if key in found
    }


def _base_tallies(patient, base_cosine, reg_power) -> dict[str, Tally]:
    first, second = np.triu_indices(base_cosine.shape[-1], k=1)
    pairs = base_cosine[:, first, second]
    return {
        "mean_cosine": tally_rows(patient, pairs.mean(axis=-1)),
        "reg": tally_rows(patient, (np.maximum(pairs, 0.0) ** reg_power).mean(axis=-1)),
    }


def _position_scores(
    windows, geometry: Geometry, compare, queries: int, seed: int, shift_range: float, clean: bool = True
):
    """Tallies of all accuracies of place; then what ``compare`` found on crops as they are, and their labels.

    Args:
        compare: ``(arrays, base corners, query corners, shift or None) -> {"cosine": (W, Q, N), ...}``.
        clean: whether crops as they are, without intensity shift, are looked at as well; else None is found on them.
    """
    tallies, whole, everyone = {}, None, np.unique([w.patient for w in windows])
    for kind, slabs in (("position", False), ("disjoint", True)):
        seen, hu, bases = scenes(windows, geometry, slabs=slabs)
        if not seen:
            continue
        asked = draw_queries(seen, geometry, queries, seed, shift_range, slabs=slabs)
        as_is = compare(hu, bases, asked.starts, None) if clean else None
        shifted = compare(hu, bases, asked.starts, asked.shift)
        patient = np.array([w.patient for w in seen])
        tallies |= _position_tallies(kind, patient, everyone, as_is, shifted, asked.labels)
        whole = whole or (as_is, asked.labels)
    for name in [name for name in tallies if name.endswith("position_accuracy_balanced")]:
        disjoint = tallies.get(name.replace("position", "disjoint"))
        tallies[name.replace("position", "place")] = place_tally(tallies[name], disjoint)
    return tallies, *whole


def _position_tallies(kind: str, patient, everyone, clean, shifted, labels) -> dict[str, Tally]:
    rows, cells = np.repeat(patient, labels.shape[1]), labels.shape[-1]
    tallies = {}
    for prefix, found, key in (
        ("", shifted, "cosine"),
        ("clean_", clean, "cosine"),
        ("encoder_", shifted, "encoder_cosine"),
        ("encoder_clean_", clean, "encoder_cosine"),
    ):
        if found is not None and key in found:
            both = position_tallies(rows, found[key].reshape(-1, cells), labels.reshape(-1, cells), everyone)
            tallies |= {f"{prefix}{kind}_{score}": tally for score, tally in both.items()}
    return tallies


def _report(name, windows, queries, seed, tallies, values) -> HealthReport:
    scans = {w.scan for w in windows}
    deep = {w.scan for w in windows if w.slabs is not None}
    shallow = sorted({w.no_slabs for w in windows if w.no_slabs})
    shares = {str(w.key[0]): np.mean([v.padded_share for v in windows if v.scan == w.scan]) for w in windows}
    return HealthReport(
        name=name,
        tallies=tallies,
        values=values | {"padded_share": float(np.mean([w.padded_share for w in windows]))},
        scans=len(scans),
        disjoint_scans=len(deep),
        windows=len(windows),
        queries=queries,
        seed=seed,
        padded={scan: float(share) for scan, share in shares.items() if share > PADDED_SHARE},
        disjoint_missing=None if deep else f"none of {len(scans)} scans has one: {'; '.join(shallow)}",
    )
