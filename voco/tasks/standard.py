"""The metrics of outputs of any kind: rankings and shares of classes, errors of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from voco.stats.parts import Part, RankingPart, SumPart, Weighted, mean_part
from voco.stats.ranking import auroc, average_precision, divided, why_undefined, with_labels
from voco.tasks import classes
from voco.tasks.metrics import METRICS, Metric, OutputMetric

# Rankings


class Ranking(OutputMetric):
    """A number of how scores order the cases; of one yes-or-no output it is computed for thousands of draws at once."""

    range = (0.0, 1.0)
    ranks = True

    @property
    def all_draws(self) -> bool:
        """Whether it is of one yes-or-no output."""
        return len(self.outputs) == 1 and self.outputs[0].kind == "binary"

    def why(self, labels: np.ndarray, scores: np.ndarray) -> str:
        return why_undefined(labels) if scores.shape[1] == 1 else super().why(labels, scores)


@METRICS.register("auroc")
class AUROC(Ranking):
    """Area under the ROC curve; of several classes the mean over those that occur, each against the rest."""

    name = "auroc"
    title = "AUROC"
    words = "AUROC: area under the ROC curve; 0.5 where scores rank no better than chance"
    kinds: ClassVar = ("binary", "multiclass")

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        if scores.shape[1] == 1:
            return auroc(labels, scores[:, 0])
        return classes.mean_defined(classes.one_vs_rest_auroc(labels, scores))

    def weighted(self, labels: np.ndarray, scores: np.ndarray) -> Weighted:
        if scores.shape[1] == 1:
            return lambda weights: auroc(labels, scores[:, 0], weights)
        return lambda weights: np.array(
            [
                classes.mean_defined(each)
                for each in np.transpose([auroc(labels == k, column, weights) for k, column in enumerate(scores.T)])
            ]
        )

    def relabeled(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if scores.shape[1] == 1:
            return with_labels(auroc, labels, scores[:, 0])
        return super().relabeled(labels, scores)

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
        if scores.shape[1] == 1:
            return [RankingPart(rows, labels, scores[:, 0])]
        return [RankingPart(rows, (labels == k).astype(float), column) for k, column in enumerate(scores.T)]

    def sides(self, rows) -> np.ndarray | None:
        return self.arrays(rows)[0][0] if self.all_draws else None


@METRICS.register("ap")
class AveragePrecision(Ranking):
    """Average precision of a yes-or-no output."""

    name = "ap"
    title = "AP"
    kinds: ClassVar = ("binary",)

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return average_precision(labels, scores[:, -1])

    def weighted(self, labels: np.ndarray, scores: np.ndarray) -> Weighted:
        if self.all_draws:
            return lambda weights: average_precision(labels, scores[:, -1], weights)
        return super().weighted(labels, scores)  # few draws: scikit-learn's number to the last digit

    def relabeled(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return with_labels(average_precision, labels, scores[:, -1])

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
        return [SumPart(rows, lambda weights: average_precision(labels, scores[:, -1], weights), labels)]


class ImageAUROC(Metric):
    """AUROC of images, all studies together; images without a score or a label do not count."""

    name = "image_auroc"
    range = (0.0, 1.0)
    ranks = True
    table = "images"

    def value(self, units, images=None) -> float:
        if images is None or not len(images):
            return float("nan")
        images = images[images["unit"].isin(units["unit"])]
        return auroc(self.sides(images), np.nan_to_num(images["score"].to_numpy(float)))

    def why_not(self, units, images=None) -> str:
        if images is None or not len(images):
            return "no image scores"
        return why_undefined(self.sides(images[images["unit"].isin(units["unit"])]))

    def of(self, rows) -> Weighted:
        labels, scores = self.sides(rows), np.nan_to_num(rows["score"].to_numpy(float))
        return lambda weights: auroc(labels, scores, weights)

    def sides(self, rows) -> np.ndarray:
        labels, scores = rows["label"].to_numpy(float), rows["score"].to_numpy(float)
        return np.where(np.isnan(scores), np.nan, labels)


# Classes


class OfConfusion(OutputMetric):
    """A number of the matrix of true and predicted classes; the class with the highest score is predicted."""

    range = (0.0, 1.0)
    kinds: ClassVar = ("multiclass",)

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        """(R,) numbers of (R, K, K) counts."""
        raise NotImplementedError

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return self.of_matrices(classes.confusion(labels, self.predicted(scores), scores.shape[1])[None])[0]

    def weighted(self, labels: np.ndarray, scores: np.ndarray) -> Weighted:
        predicted, count = self.predicted(scores), scores.shape[1]
        return lambda weights: self.of_matrices(classes.confusions(labels, predicted, count, weights))

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """(n,) numbers of the predicted classes."""
        return scores.argmax(1)


@METRICS.register("accuracy")
class Accuracy(OfConfusion):
    """Share of cases whose class is predicted."""

    name = "accuracy"

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        return classes.accuracy(matrices)

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
        return [mean_part(rows, self.predicted(scores) == labels)]


@METRICS.register("balanced_accuracy")
class BalancedAccuracy(OfConfusion):
    """Mean of the recalls of the classes that occur."""

    name = "balanced_accuracy"

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        return np.array([classes.mean_defined(each) for each in classes.recalls(matrices)])

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
        right = self.predicted(scores) == labels
        return [mean_part(rows[labels == k], right[labels == k]) for k in range(scores.shape[1])]


class Recall(OfConfusion):
    """Recall of one class.

    Args:
        which: number of the class.
    """

    def __init__(self, outputs, name: str, which: int, **settings):
        super().__init__(outputs, name, **settings)
        self.which = which

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        return classes.recalls(matrices)[:, self.which]


@METRICS.register("kappa")
class Kappa(OfConfusion):
    """Cohen's kappa, unweighted."""

    name = "kappa"
    words = "Kappa: Cohen's, unweighted; 0 where agreement is no better than chance"
    range = (-1.0, 1.0)

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        return classes.cohen_kappa(matrices)

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
        return [SumPart(rows, self.weighted(labels, scores))]


# Numbers


class OfValues(OutputMetric):
    """A number of labels and predicted values."""

    kinds: ClassVar = ("regression",)
    undefined = "all labels or all scores are the same"

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part] | None:
        of_weights = self.summed(labels, scores[:, 0])
        return None if of_weights is None else [SumPart(rows, of_weights)]

    def summed(self, y: np.ndarray, p: np.ndarray) -> Weighted | None:
        """The number from weighted sums over cases; None where it is not one of sums."""
        return None


@METRICS.register("mae")
class MAE(OfValues):
    """Mean absolute error."""

    name = "mae"
    title = "MAE"
    higher_is_better = False
    range = (0.0, float("inf"))

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return np.abs(labels - scores[:, 0]).mean()

    def summed(self, y: np.ndarray, p: np.ndarray) -> Weighted:
        return lambda weights: divided(weights @ np.abs(y - p), weights.sum(1))


@METRICS.register("rmse")
class RMSE(OfValues):
    """Root of the mean squared error."""

    name = "rmse"
    higher_is_better = False
    range = (0.0, float("inf"))

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return np.sqrt(((labels - scores[:, 0]) ** 2).mean())

    def summed(self, y: np.ndarray, p: np.ndarray) -> Weighted:
        return lambda weights: np.sqrt(divided(weights @ (y - p) ** 2, weights.sum(1)))


@METRICS.register("r2")
class R2(OfValues):
    """1 - squared error / squared deviation from the mean of these labels; NaN where they are all the same."""

    name = "r2"
    range = (-float("inf"), 1.0)

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        spread = ((labels - labels.mean()) ** 2).sum()
        return 1 - ((labels - scores[:, 0]) ** 2).sum() / spread if spread > 0 else np.nan

    def summed(self, y: np.ndarray, p: np.ndarray) -> Weighted:
        def of_weights(weights: np.ndarray) -> np.ndarray:
            mean = divided(weights @ y, weights.sum(1))
            spread = (weights * (y - mean[:, None]) ** 2).sum(1)
            return 1 - divided(weights @ (y - p) ** 2, spread)

        return of_weights


@METRICS.register("spearman")
class Spearman(OfValues):
    """Correlation of ranks, ties at their mean rank; NaN where one side is constant."""

    name = "spearman"
    range = (-1.0, 1.0)
    ranks = True

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        if len(set(labels)) < 2 or len(set(scores[:, 0])) < 2:
            return float("nan")
        from scipy.stats import rankdata

        return np.corrcoef(rankdata(labels), rankdata(scores[:, 0]))[0, 1]


def metrics_of(kind: str) -> list[Callable[..., Metric]]:
    """Registered metrics of a kind of output, in the order in which they were registered."""
    return [cls for cls in METRICS.values() if kind in cls.kinds]
