"""Fixtures that tests of more than one folder use."""

from __future__ import annotations

import os

import pytest

# Before anything loads torch: some tests fork, and a fork of a process whose OpenMP has threads waits for them for ever
# (on top of which two test processes of one thread are faster than one of two).
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with a small labeled cohort, ``labels.csv`` in it."""
    from tests.finetune.made import write_cohort

    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root)
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder for runs, with settings that take a second."""
    from tests.finetune.made import SLICES, SMALL

    folder = tmp_path_factory.mktemp("work")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "slices.yaml").write_text(SLICES)
    return folder
