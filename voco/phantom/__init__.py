"""Synthetic patients: anatomy as labelled parts, a scanner model, and writers that lay cohorts out as archives do."""

from __future__ import annotations

import importlib

_LAZY = {
    "make_patient": "voco.phantom.anatomy.patient",
    "Patient": "voco.phantom.anatomy.patient",
    "write_cohort": "voco.phantom.cohort",
    "LABELS": "voco.phantom.anatomy.labels",
    "GROUPS": "voco.phantom.anatomy.labels",
}
__all__ = list(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'voco.phantom' has no attribute {name!r}")
