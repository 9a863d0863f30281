"""Does a run learn: held-out scores beside the lines that need no learning, what they allow to say, a verdict."""

from voco.health.evaluate import calibrate_batchnorm, evaluate, evaluate_histogram, outer_window
from voco.health.examples import similarity_examples
from voco.health.inference import Difference
from voco.health.judgement import Judgement
from voco.health.report import HealthReport
from voco.health.verdict import constant_line, judge, judgements, verdict
from voco.health.windows import EvalWindow, build_eval_windows

__all__ = [
    "Difference",
    "EvalWindow",
    "HealthReport",
    "Judgement",
    "build_eval_windows",
    "calibrate_batchnorm",
    "constant_line",
    "evaluate",
    "evaluate_histogram",
    "judge",
    "judgements",
    "outer_window",
    "similarity_examples",
    "verdict",
]
