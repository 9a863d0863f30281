"""What frozen features know: nearest neighbours and linear models. Pure functions, deterministic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from voco.errors import InputError
from voco.short_repr import short_repr
from voco.tasks.base import Output

# Values of C that are tried, weak to strong fit, as in sklearn: the inverse of the penalty.
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5
_MAX_ITERATIONS = 5000
# Logit of a class that the training set does not have: its probability is 0 in print, and its logarithm is finite.
_ABSENT = -30.0


def knn_scores(
    output: Output,
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Logits by weighted votes of the nearest training vectors, see ``voco.transfer.heads.NeighbourHead``.

    Args:
        output: what is predicted.
        train_x, train_y: (n, F) features and (n,) labels; NaN = not known.
        test_x: (m, F).
        neighbours: k; at most the training vectors with a label.
        temperature: of the weights exp(cosine / temperature).

    Returns:
        (m, width) float64 whose sigmoid or softmax are the votes, or the weighted mean for regression.

    Raises:
        InputError: no training vector with a label, or arrays that do not fit together.
    """
    import torch

    from voco.transfer.heads import NeighbourHead

    train_x, train_y = _known(train_x, train_y)
    head = NeighbourHead.fit(
        [output], torch.from_numpy(train_x), {output.name: torch.from_numpy(train_y)}, neighbours, temperature
    )
    with torch.no_grad():
        return head(torch.from_numpy(np.asarray(test_x, np.float64)))[output.name].double().numpy()


@short_repr
@dataclass(frozen=True)
class LinearProbe:
    """A linear model on standardised features: ``((x - mean) / std) @ weight.T + bias``.

    Attributes:
        mean, std: (F,) of the training features.
        weight: (width, F).
        bias: (width,).
        C: inverse penalty that was chosen.
        value: minus the loss that it was chosen by; NaN where nothing could be chosen.
    """

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    C: float
    value: float = float("nan")

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(n, F) to (n, width) logits, or values for regression."""
        return (np.asarray(x, np.float64) - self.mean) / self.std @ self.weight.T + self.bias


def linear_probe(
    output: Output,
    x: np.ndarray,
    y: np.ndarray,
    *,
    grid: Sequence[float] = GRID,
    class_weight: str | Mapping[int, float] | None = None,
    groups: Sequence | None = None,
) -> LinearProbe:
    """Logistic regression (classes) or ridge regression, with the penalty chosen inside the training set.

    Nobody but the training patients has a say, so validation patients can judge the probe as test patients do. C is the
    one with the least log loss (or squared error) over the held-out folds of a cross-validation, 5 folds or as many as
    the smallest class has patients; of equal ones the strongest penalty. Where no two folds can be made it is the
    middle of the grid.

    Args:
        output: what is predicted.
        x, y: (n, F) features and (n,) labels; NaN = not known.
        grid: values of C that are tried.
        class_weight: ``"balanced"`` weighs classes by the inverse of their frequency; or a weight a class.
        groups: (n,) patients, kept together by the cross-validation.

    Returns:
        The probe, fitted on all of them. With one class there, it gives the same logits for everything.

    Raises:
        InputError: no vector with a label, an empty grid, or arrays that do not fit together.
    """
    if not len(grid):
        raise InputError("a linear probe needs at least one value of C to try")
    groups = None if groups is None else np.asarray(groups)[~np.isnan(np.asarray(y, np.float64))]
    x, y = _known(x, y)
    grid = sorted(grid)
    values = _cross_validate(output, x, y, grid, class_weight, groups)
    best = int(np.argmax(values)) if values else len(grid) // 2
    fit = fit_probe(output, x, y, grid[best], class_weight)
    return replace(fit, value=values[best]) if values else fit


def _known(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise InputError(f"features are (n, F) and labels (n,); found {x.shape} and {y.shape}")
    known = ~np.isnan(y)
    if not known.any():
        raise InputError("no vector has a label")
    return np.ascontiguousarray(x[known]), y[known]


def _minus_loss(output: Output, logits: np.ndarray, y: np.ndarray) -> float:
    if output.kind == "regression":
        return -float(np.mean((logits[:, 0] - y) ** 2))
    z = np.hstack([np.zeros_like(logits), logits]) if output.kind == "binary" else logits
    top = z.max(1, keepdims=True)
    log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    return float(np.mean(log_p[np.arange(len(y)), y.astype(int)]))


def fit_probe(
    output: Output, x: np.ndarray, y: np.ndarray, C: float, class_weight: str | Mapping[int, float] | None = None
) -> LinearProbe:
    """One fit on vectors (n, F) whose labels (n,) are all known; arguments as ``linear_probe``, or a weight a class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-12, std, 1.0)
    z = (x - mean) / std
    weight, bias = np.zeros((output.width, x.shape[1])), np.zeros(output.width)
    if output.kind == "regression":
        model = Ridge(alpha=1.0 / C).fit(z, y)
        return LinearProbe(mean, std, model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_), C)
    classes = np.unique(y.astype(int))
    if len(classes) == 1:
        if output.kind == "binary":
            bias[0] = _ABSENT if classes[0] == 0 else -_ABSENT
        else:
            bias[:] = _ABSENT
            bias[classes[0]] = 0.0
        return LinearProbe(mean, std, weight, bias, C)
    with warnings.catch_warnings():
        # a fit that stops early is still a fit, and is judged as such
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=C, class_weight=class_weight, max_iter=_MAX_ITERATIONS).fit(z, y.astype(int))
    if output.kind == "binary":
        return LinearProbe(mean, std, model.coef_, model.intercept_, C)
    bias[:] = _ABSENT
    if len(classes) == 2:  # sklearn gives one row of log-odds
        weight[classes[1]], bias[classes] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weight[classes], bias[classes] = model.coef_, model.intercept_
    return LinearProbe(mean, std, weight, bias, C)


def _cross_validate(output, x, y, grid, class_weight, groups) -> list[float]:
    """Minus the loss of each C over all held-out folds together; empty where no fold can be made."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = np.arange(len(y)) if groups is None else groups
    regression = output.kind == "regression"
    if regression:
        folds = min(_FOLDS, len(np.unique(groups)))
    else:
        members = [len(np.unique(groups[y == c])) for c in np.unique(y)]
        folds = min(_FOLDS, *members) if len(members) > 1 else 0
    if folds < 2 or len(grid) == 1:
        return []
    splitter = GroupKFold(folds) if regression else StratifiedGroupKFold(folds)
    parts = list(splitter.split(x, None if regression else y.astype(int), groups))
    values = []
    for C in grid:
        logits = np.zeros((len(y), output.width))
        for inside, outside in parts:
            logits[outside] = fit_probe(output, x[inside], y[inside], C, class_weight).logits(x[outside])
        values.append(_minus_loss(output, logits, y))
    return values
