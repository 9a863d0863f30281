"""Frozen features of every window, computed once and kept: what linear probes and nearest neighbours start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from finetune.cohort import Study
from voco.data.progress import Progress
from voco.files import whole
from voco.transfer.predict import window_features


def feature_folder(cache: Path, model, view, precision: str) -> Path:
    """Where the features of this encoder, view and precision lie; another weight, another folder."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    encoder = model.encoder
    spec = asdict(encoder.input_spec)
    read = [model.options.features, model.options.spatial, precision]
    settings = [encoder.name, encoder.arguments, read, asdict(view), spec]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return Path(cache) / "features" / digest.hexdigest()


def study_features(
    studies: Sequence[Study], model, view, folder: Path, accelerator, dtype, say: Callable[[str], None]
) -> list[np.ndarray]:
    """(N, F) float32 window vectors of each study, from disk where they are there, shared among the processes."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"{'-'.join(path.stem for path in study.paths)}.npy" for study in studies]
    missing = [i for i, place in enumerate(places) if not place.is_file()]
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    own = missing[accelerator.process_index :: accelerator.num_processes]
    if missing:
        say(f"features: {len(places) - len(missing)} studies are ready, {len(missing)} to compute")
    bar = Progress("features", len(own), accelerator.is_main_process and bool(own))
    for i in own:
        features, _ = window_features(model, studies[i].paths, view, dtype=dtype)
        with whole(places[i]) as place, open(place, "wb") as file:
            np.save(file, features)
        bar.step()
    bar.close()
    accelerator.wait_for_everyone()
    return [np.load(place) for place in places]
