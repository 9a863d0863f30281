"""The two errors that a user is meant to read: command lines print them as one message, without a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """A setting, file or folder that cannot be used; the message says what was found, what was expected, what to do."""


class ScanError(InputError):
    """One scan that cannot be used. Cohort commands write it to ``rejected.csv`` (path, reason) and go on."""
