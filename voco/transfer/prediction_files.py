"""``predictions.csv`` and ``predictions_images.parquet``: what every figure of a run is computed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voco.errors import InputError
from voco.files import whole, write_text
from voco.tasks.base import KEYS

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS, IMAGES = "predictions.csv", "predictions_images.parquet"


def write_predictions(out: str | Path, frame: pd.DataFrame) -> Path:
    """Write ``predictions.csv``, sorted by fold, part and case, every digit kept; whole or not at all.

    Raises:
        InputError: columns that must be there are not, a case stands twice in one part of one fold, or a score is not
            finite.
    """
    if missing := [name for name in KEYS if name not in frame]:
        raise InputError(f"predictions lack the columns {', '.join(missing)}")
    keys = ["fold", "split", "case"]
    if frame.duplicated(keys).any():
        raise InputError(f"{int(frame.duplicated(keys).sum())} cases are predicted twice in one part of one fold")
    scores = [name for name in frame if name.startswith("score_")]
    bad = ~np.isfinite(frame[scores].to_numpy(float)).all(1)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(frame)} cases have scores that are not finite (first: "
            f"{frame['case'][bad].iloc[0]}); the network has diverged: lower --train.lr, or use --train.precision fp32"
        )
    path = Path(out) / PREDICTIONS
    return write_text(path, frame.sort_values(keys).to_csv(index=False))


def read_predictions(out: str | Path) -> pd.DataFrame:
    """``predictions.csv`` as it was written: numbers to the last digit, names as text (``007`` stays so)."""
    import pandas as pd

    path = Path(out) / PREDICTIONS
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected the folder of a finished finetune run")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in frame:
        if str(name).startswith(("label_", "score_")):
            # Python reads what it wrote to the last digit, pandas by default need not
            frame[name] = np.array([float(text) if text else np.nan for text in frame[name]], np.float64)
    frame["fold"] = frame["fold"].astype(np.int64)
    return frame


def write_images(out: str | Path, frame: pd.DataFrame) -> Path:
    """Write ``predictions_images.parquet``; whole or not at all."""
    path = Path(out) / IMAGES
    with whole(path) as place:
        frame.to_parquet(place, index=False)
    return path


def read_images(out: str | Path) -> pd.DataFrame | None:
    """``predictions_images.parquet``, None where slices were not scored."""
    import pandas as pd

    path = Path(out) / IMAGES
    return pd.read_parquet(path) if path.is_file() else None
