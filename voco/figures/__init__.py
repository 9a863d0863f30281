"""What a person would rather look at: one function per picture, each returns a matplotlib figure.

Importing this package does not import matplotlib.
"""

from voco.figures.anatomy import SimilarityCase, crops_of_case, similarity_map
from voco.figures.curves import heldout_summary, loss_curves, position_scores
from voco.figures.export import save, save_all, svg

__all__ = [
    "SimilarityCase",
    "crops_of_case",
    "heldout_summary",
    "loss_curves",
    "position_scores",
    "save",
    "save_all",
    "similarity_map",
    "svg",
]
