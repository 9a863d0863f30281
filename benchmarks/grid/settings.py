"""Settings of the runs of a grid: recipes with what differs, checked by the stage that will read them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grid.fields import read_yaml
from voco.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# What ties an input to the weights it was made for.
_OF_THE_ENCODER = ("window", "mean", "std", "size", "spacing", "stride", "stored")


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, later ones over earlier ones; lists are replaced as a whole."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            inside = isinstance(value, Mapping)
            merged[key] = merge(merged[key] if isinstance(merged.get(key), Mapping) else {}, value) if inside else value
    return merged


def digest(value: Any) -> str:
    """Twelve hex digits of plain values; equal for equal ones in any order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_recipe(stage: str, name: str, where: str) -> dict[str, Any]:
    """Settings of a recipe: a path, or a name in ``configs`` of the stage.

    Args:
        stage: ``pretrain`` or ``finetune``.
        where: key that names it.
    """
    folder = ROOT / stage / "configs"
    places = [folder / f"{name}.yaml", folder / name, Path(name)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise InputError(f"{where}: no recipe {name!r}; give a path to a YAML file or one of: {known}")
    return read_yaml(found)


def as_pretrained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with the input that the encoder asks for: intensity, size and spacing."""
    kept = {key: value for key, value in settings.get("input", {}).items() if key not in _OF_THE_ENCODER}
    return {**settings, "input": kept}


class Checker:
    """Parses settings as the stages do, each different text once.

    Only the stages know their settings: a wrong one is found before anything runs, by the parser that will read it.
    """

    def __init__(self):
        self._known: dict[str, dict[str, Any]] = {}

    def resolve(self, stage: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        """All settings of a run, defaults included.

        Args:
            stage: ``pretrain`` or ``finetune``.
            settings: nested.
            where: key of the grid to blame.

        Raises:
            InputError: unknown settings, or values that cannot be.
        """
        key = f"{stage} {digest(settings)}"
        if key not in self._known:
            self._known[key] = _parse(stage, settings, where)
        return self._known[key]


def _parse(stage: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    import yaml

    from voco.config import parse, to_dict

    # taken from the module that runs a stage, the only one that knows its settings
    if stage == "pretrain":
        from pretrain.run import SCHEMA as schema
        from pretrain.run import check
    else:
        from finetune.config import schema as make_schema
        from finetune.run import check

        schema = make_schema()
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(dict(settings)))
        try:
            with contextlib.redirect_stderr(said):
                # the data set need not be there yet; any folder that exists will do
                config = parse(schema, ["--config", str(path), "--data.root", folder, "--out", folder])
            check(config, 1)
        except SystemExit:
            lines = [line for line in said.getvalue().splitlines() if line.strip()]
            start = max((i for i, line in enumerate(lines) if line.startswith("error:")), default=0)
            reason = " ".join(" ".join(lines[start:]).removeprefix("error:").split())
            raise InputError(f"{where}: {stage}/run.py does not accept these settings: {reason}") from None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    config.pop("plugins", None)  # like all code, not part of what a cell is
    return to_dict(config)
