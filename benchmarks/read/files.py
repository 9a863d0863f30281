"""Files of a run folder as values, with one clear message where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voco.errors import InputError

# Size and spacing are those of the view; what an encoder was once pretrained at changes nothing.
_INTENSITY = ("axes", "windows", "mean", "std", "rgb_mean", "rgb_std")


def read_entry(line: str) -> dict[str, Any]:
    """A line of a ledger; empty where its writer died half-way."""
    try:
        found = json.loads(line)
    except ValueError:  # a writer died half-way
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); the run was damaged: run its command again") from None


def read_settings(folder: Path) -> dict[str, Any]:
    """``config.yaml`` with dotted names."""
    import yaml

    from voco.config import flatten

    # the C loader reads a thousand files in seconds, the other one in half a minute
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load((folder / "config.yaml").read_text(), loader)
    except yaml.YAMLError as error:
        raise InputError(f"{folder / 'config.yaml'} is not YAML: {error}") from None
    return flatten(found if isinstance(found, dict) else {})


def read_history(folder: Path, results: Mapping[str, Any]) -> tuple[list[dict], dict, dict]:
    """History of the encoder before this run, what it was fed, and what rebuilds it (empty where that is not known)."""
    from voco.weights.folder import read_config

    first = next((path for path in (folder, *sorted(folder.glob("fold-*"))) if (path / "encoder").is_dir()), None)
    config = read_config(first / "encoder") if first is not None else None
    if config is not None:
        spec = {name: config["input_spec"].get(name) for name in _INTENSITY}
        network = {name: config[name] for name in ("arch", "arguments", "input_spec")}
        return list(config["provenance"][:-1]), spec, network
    names = results["facts"].get("provenance", [])
    return [{"method": str(name)} for name in names], {"windows": results["facts"].get("input_windows")}, {}
