"""Tables of units with made-up scores, and what is true of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

from voco.tasks import create_task

PE = create_task("rsna_pe")


def table(labels, scores, *, patients=None, folds=0) -> pd.DataFrame:
    """One row per unit of the task ``rsna_pe``."""
    names = [f"s{i:04d}" for i in range(len(labels))]
    patients = names if patients is None else [f"p{number}" for number in patients]
    columns = {"unit": names, "patient": patients, "fold": folds, "split": "test"}
    return pd.DataFrame(columns | {"label_pe": np.asarray(labels, float), "score_pe": np.asarray(scores, float)})


def sources(rng, shifts, *, n=60, seeds=3, between=0.3, source=0.3, noise=0.5, share=0.4) -> list[list[pd.DataFrame]]:
    """Runs of several sources on the same patients; scores are normal, so that the AUROC is known.

    Args:
        shifts: of positives, one per source.
        n: patients.
        seeds: runs of each source.
        between, source, noise: standard deviations of a seed's shift, of what all runs of a source see in a patient,
            and of what one run sees.
        share: of positives.
    """
    labels = (np.arange(n) < round(share * n)).astype(float)
    common, found = rng.normal(size=n) * 0.7, []
    for shift in shifts:
        own = common + rng.normal(size=n) * source
        each = [own + rng.normal(size=n) * noise + (shift + rng.normal() * between) * labels for _ in range(seeds)]
        found.append([table(labels, scores) for scores in each])
    return found


def true_auroc(shift, between=0.3, source=0.3, noise=0.5) -> float:
    """Mean over seeds of the AUROC on all patients."""
    return float(norm.cdf(shift / np.sqrt(2 * (0.49 + source**2 + noise**2) + between**2)))
