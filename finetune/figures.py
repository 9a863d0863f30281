"""Pictures of a run."""

from __future__ import annotations


def draw_figures(session, cases, images, results) -> list:
    return []
