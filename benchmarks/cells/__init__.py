"""Doing the cells of a grid: where they lie, what they run, by whom."""
