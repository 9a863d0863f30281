"""Does a run learn: held-out scores beside the lines that need no learning, intervals over scans, a verdict."""

from voco.health.evaluate import calibrate_batchnorm, evaluate, evaluate_histogram, outer_window
from voco.health.examples import similarity_examples
from voco.health.report import Difference, HealthReport, constant_line, differences, verdict
from voco.health.windows import EvalWindow, build_eval_windows

__all__ = [
    "Difference",
    "EvalWindow",
    "HealthReport",
    "build_eval_windows",
    "calibrate_batchnorm",
    "constant_line",
    "differences",
    "evaluate",
    "evaluate_histogram",
    "outer_window",
    "similarity_examples",
    "verdict",
]
