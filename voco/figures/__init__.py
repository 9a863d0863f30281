"""What a person would rather look at: one function per picture, each writes a PNG and returns its path.

Importing this package does not import matplotlib.
"""

from voco.figures.anatomy import SimilarityCase, crops_of_case, similarity_map
from voco.figures.curves import heldout_summary, loss_curves, position_scores

__all__ = ["SimilarityCase", "crops_of_case", "heldout_summary", "loss_curves", "position_scores", "similarity_map"]
