"""What an encoder folder is: its file names, how a path finds it, and its checked ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path

from voco import __version__, plugins
from voco.encoders.base import ENCODERS
from voco.errors import InputError

FORMAT = "voco-encoder"
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
FINGERPRINTS = "fingerprints-*.npz"


def find_encoder_folder(path: str | Path) -> Path | None:
    """The folder with ``config.json`` that a path means: itself, its ``encoder/``, or the folder of a file in it."""
    path = Path(path).expanduser()
    if path.is_file() and path.name in (WEIGHTS_FILE, CONFIG_FILE):
        path = path.parent
    for folder in (path, path / "encoder"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    return None


def read_config(path: str | Path) -> dict | None:
    """The checked ``config.json`` of an encoder folder or run folder, None where the path is no folder of ours.

    Raises:
        InputError: a folder whose ``config.json`` is damaged or belongs to another library.
    """
    folder = find_encoder_folder(path)
    if folder is None:
        return None
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); export the encoder again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        if Path(path).expanduser().name == WEIGHTS_FILE:
            return None  # a plain weights file that lies beside some other library's config
        raise InputError(f"{file} was not written by voco (no format {FORMAT!r}); name a weights file instead")
    wanted = {"arch", "arguments", "input_spec", "provenance", "dtype"}
    if lost := sorted(wanted - set(config)):
        raise InputError(f"{file} lacks {', '.join(lost)}; export the encoder again")
    if config["arch"] not in ENCODERS:
        plugins.check(file, config.get("plugins"))
        raise InputError(
            f"{file} names the architecture {config['arch']!r} (written by voco {config.get('voco_version')}), which "
            f"this version ({__version__}) does not have; known: {', '.join(ENCODERS)}"
        )
    if config["dtype"] not in ("float16", "bfloat16", "float32", "float64"):
        raise InputError(f"{file} has the dtype {config['dtype']!r}, expected a floating point type")
    return config


def read_fingerprints(path: str | Path) -> dict[str, bytes]:
    """The fingerprint files of an encoder or run folder: which scans its trainings saw, one file a training.

    A file that the history names and the folder lacks is left out here; who looks for leaks takes it as not known.
    """
    folder = find_encoder_folder(path)
    return {file.name: file.read_bytes() for file in sorted(folder.glob(FINGERPRINTS))} if folder else {}
