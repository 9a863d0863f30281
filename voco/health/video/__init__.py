"""Does a run on labeled clips learn: held-out answers beside the lines that need no learning, and a verdict."""

from voco.health.video.evaluate import evaluate_clips, nearest_centroid
from voco.health.video.report import HEADLINE, ClipLine, VideoReport, better_of, line_of, mean_of, report_of
from voco.health.video.verdict import constant_lines, judge, verdict

__all__ = [
    "HEADLINE",
    "ClipLine",
    "VideoReport",
    "better_of",
    "constant_lines",
    "evaluate_clips",
    "judge",
    "line_of",
    "mean_of",
    "nearest_centroid",
    "report_of",
    "verdict",
]
