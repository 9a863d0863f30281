"""Run folders read back, and which of them may be compared."""
