"""A continued run must be the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voco.config import changed, flatten
from voco.errors import InputError


def check_same_settings(
    saved: Path, settings: Mapping[str, Any], free: Sequence[str], new: Mapping[str, Any] | None = None
) -> None:
    """Compare the settings with those that a run was started with; differing ones are listed, not guessed at.

    Args:
        saved: ``config.yaml`` of the run; nothing is compared where there is none.
        settings: plain nested values, see ``voco.config.to_dict``.
        free: settings that may differ, as ``voco.config.changed`` takes them.
        new: settings that runs of an earlier version do not have, with the value that they stood for; those that this
            kind of run does not have either are passed over.

    Raises:
        InputError: other settings.
    """
    import yaml

    if not saved.is_file():
        return
    known = flatten(settings)
    old = {
        **{name: value for name, value in (new or {}).items() if name in known},
        **flatten(yaml.safe_load(saved.read_text())),
    }
    if lines := changed(old, settings, free):
        raise InputError(
            f"{saved.parent} was started with other settings:\n  "
            + "\n  ".join(lines)
            + f"\nRepeat them, or use another --out: with --train.extend {saved.parent} to go on from there with more "
            f"steps or another learning rate, with --encoder.weights {saved.parent} to start from its encoder"
        )
