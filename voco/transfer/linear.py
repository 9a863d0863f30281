"""Logistic and ridge regression on frozen features, as weights of a linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Log-odds of a class that no training case has: as good as never, and finite.
_ABSENT = -30.0
_ITERATIONS = 2000


def fit_linear(
    outputs: Sequence,
    x: np.ndarray,
    targets: Mapping[str, np.ndarray],
    c: float,
    class_weights: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fit every output on standardised features (scikit-learn's LogisticRegression, Ridge for regression).

    Args:
        outputs: of the task (``voco.tasks.base.Output``).
        x: (n, F) features.
        targets: (n,) per output, NaN = not known.
        c: inverse strength of the L2 penalty on the summed loss.
        class_weights: per output, a weight for each class.

    Returns:
        Name to weight (width, F) and bias (width,) of a linear layer that gives logits, or values.
    """
    return {o.name: _fit(o, x, np.asarray(targets[o.name]), c, (class_weights or {}).get(o.name)) for o in outputs}


def _fit(output, x, y, c, weights) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression, Ridge

    known = ~np.isnan(y)
    x, y = x[known].astype(np.float64), y[known]
    weight, bias = np.zeros((output.width, x.shape[1])), np.zeros(output.width)
    if not len(y):
        return weight, bias
    if output.kind == "regression":
        fitted = Ridge(alpha=1 / c).fit(x, y)
        return fitted.coef_[None], np.array([fitted.intercept_])
    y = y.astype(int)
    classes = np.unique(y)
    if len(classes) == 1:
        if output.kind == "binary":
            bias[:] = -_ABSENT if classes[0] else _ABSENT
        else:
            bias[:] = _ABSENT
            bias[classes[0]] = 0
        return weight, bias
    by_class = None if weights is None else {int(k): float(weights[k]) for k in classes}
    fitted = LogisticRegression(C=c, max_iter=_ITERATIONS, class_weight=by_class).fit(x, y)
    if output.kind == "binary":
        return fitted.coef_, fitted.intercept_
    bias[:] = _ABSENT
    if len(classes) == 2:  # scikit-learn gives one row for two classes
        weight[classes], bias[classes] = (
            np.stack([-fitted.coef_[0], fitted.coef_[0]]) / 2,
            np.array([-1, 1]) * (fitted.intercept_[0] / 2),
        )
    else:
        weight[classes], bias[classes] = fitted.coef_, fitted.intercept_
    return weight, bias
