"""Findings, and what looks like them and is none."""
