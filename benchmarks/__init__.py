"""Comparisons: what works, by how much, at what cost."""
