"""What a run would be, before anything is written: cohort, parts by class, windows, steps, voxels."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from voco.data.layouts.labeled import SPLITS
from voco.errors import InputError

_SAMPLE = 4  # training scans that are looked at


def print_plan(config: dict, task, manifest, encoder, view, splits, say: Callable[[str], None]) -> None:
    """Print the plan; a few training scans are prepared in a folder that is gone afterwards, no test scan is read."""
    from voco.data.cache import PreparedVolume
    from voco.data.doubts import doubt_notes
    from voco.data.prepare import prepare
    from voco.transfer.views import measure_exposure

    say(f"plan: {len(manifest.cases)} scans with labels, {len(manifest.rejected)} that cannot be used so far")
    for fold in splits.folds:
        for name in SPLITS:
            cases = splits.select(manifest.cases, fold.number, name)
            count = Counter(task.stratum(case) for case in cases)
            classes = ", ".join(f"{n} x {word or 'no label'}" for word, n in sorted(count.items()))
            say(f"  fold {fold.number} {name}: {len(cases)} scans" + (f" ({classes})" if cases else ""))
    cases = [labeled.case for labeled in splits.select(manifest.cases, splits.folds[0].number, "train")]
    some = cases[:: -(-len(cases) // _SAMPLE)]
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(view.prepare_settings(), offset=config["data"].offset)
        found = prepare(some, manifest.root, folder, settings, progress=False)
        if not found.entries:
            raise InputError(f"none of {len(some)} training scans can be prepared: {found.rejected[0].reason}")
        exposure = measure_exposure(view, encoder.input_spec, [PreparedVolume.open(e.path) for e in found.entries])
    for note in [*(f"{item.path}: {item.reason}" for item in found.rejected), *doubt_notes(found.entries)]:
        say(f"  of {len(some)} training scans looked at: {note}")
    say(f"  view: {view.text}; {exposure.text}")
    train, models = config["train"], len(splits.folds) if config["fold"] < 0 else 1
    parameters = sum(p.numel() for p in encoder.parameters())
    say(f"  encoder {encoder.name}: {parameters:,} parameters, mode {config['mode']}, {models} model(s) to train")
    if config["mode"] == "full":
        windows = 1.0 if config["learn"] == "window" else exposure.windows
        windows = min(windows, config["input"].windows or windows)
        samples = train.steps * train.batch_size
        times = samples / (len(cases) * (exposure.windows if config["learn"] == "window" else 1))
        voxels = samples * windows * float(np.prod(view.size))
        what = "windows" if config["learn"] == "window" else "studies"
        say(f"  at most {train.steps:,} steps of {train.batch_size} {what} per model: all of them {times:.3g} times, "
            f"{voxels:.3g} voxels")  # fmt: skip
    else:
        say(f"  features of about {exposure.windows * len(manifest.cases):,.0f} windows at most, computed once")
    opened = "and test patients: the test set is opened" if config["eval"] == "test" else "patients alone"
    say(f"  scored: validation {opened}; written: {config['out']} and its cache. Now nothing was")
