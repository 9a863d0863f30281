"""Weights of a file into an encoder: all of them checked first, then assigned, and a report of what was done."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from voco.encoders.base import ENCODERS, Encoder
from voco.errors import InputError
from voco.weights.adapt import INFLATIONS
from voco.weights.examine import EXAMPLES, examine, misfit
from voco.weights.folder import WEIGHTS_FILE, find_encoder_folder, read_config, read_fingerprints
from voco.weights.read import read_tensors
from voco.weights.report import LoadReport


def load_weights(encoder: Encoder, path: str | Path, *, which: str = "auto", inflate: str = "repeat") -> LoadReport:
    """Fill an encoder from a weights file, or leave it untouched and say why.

    Reads safetensors, torch files and caffe2 pickles (never running code in them), finds the network in whatever
    dictionaries it lies and behind whatever prefix its names have, converts the names of every project that publishes
    weights of the encoder's family, and adapts input channels, 2D kernels and tables of positions by the rules of
    ``voco.weights.adapt`` and of the family.

    Args:
        encoder: from ``create_encoder``; its parameters are overwritten in place.
        path: weights file, encoder folder (``config.json`` and ``model.safetensors``) or run folder that holds one.
        which: the network to take from a checkpoint of several, by the name that the report has for it, its path in
            the file or a part of that (``student``, ``ema``). ``auto`` takes the one that matches most tensors, at a
            tie one that is not called a copy (ema, teacher, momentum …), then the first.
        inflate: how kernels of a 2D network become 3D ones, ``repeat`` or ``centre``.

    Returns:
        The report, also kept as ``encoder.load_report``.

    Raises:
        InputError: unreadable file, or one that does not fit (too little filled, a stem or any shape that differs,
            values that are constant or not finite); the encoder is then as it was.
    """
    if inflate not in INFLATIONS:
        raise InputError(f"inflate must be one of {', '.join(INFLATIONS)}; found {inflate!r}")
    if _is_of_a_part(encoder, path):
        return encoder.load_part(path, which=which)
    file, config = _locate(encoder, path)
    contents = read_tensors(file)
    found = examine(encoder, contents, which=which, inflate=inflate)
    contents.verify(found.match.paths())
    report, state = found.report, encoder.state_dict()
    if problem := misfit(encoder, found, exact=config is not None):
        raise InputError(_refusal(report, problem, state, found.match.tensors, _other_architectures(encoder, file)))

    with torch.no_grad():
        for key, value in found.fit.values.items():
            state[key].copy_(value)
    encoder.load_report = report
    if config is not None:
        encoder.provenance = list(config["provenance"])
        encoder.fingerprints = read_fingerprints(path)
    elif not encoder.provenance:
        encoder.provenance = [{"source": "file", "file": file.name}]
    return report


def _is_of_a_part(encoder: Encoder, path: str | Path) -> bool:
    """Whether a folder holds an architecture that a part of the encoder is made of."""
    part = ENCODERS[encoder.name].part if encoder.name in ENCODERS else ""
    config = read_config(path) if part else None
    return config is not None and fnmatchcase(config["arch"], part)


def _locate(encoder: Encoder, path: str | Path) -> tuple[Path, dict | None]:
    """The file to read and, where it is one of our folders, its config."""
    path = Path(path).expanduser()
    folder = find_encoder_folder(path)
    config = read_config(path) if folder else None
    if config is not None:
        if encoder.name and config["arch"] != encoder.name:
            raise InputError(f"{path} holds a {config['arch']}, which does not fit a {encoder.name}")
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {WEIGHTS_FILE} beside its config.json; export or copy it again")
    elif path.is_dir():
        raise InputError(
            f"{path} is not an encoder folder (config.json, model.safetensors) nor a run folder with one in encoder/; "
            f"name a weights file, or wait until the run has exported its encoder"
        )
    elif not path.exists():
        raise InputError(f"no weights at {path}: expected a file or a folder")
    return path, config


def _other_architectures(encoder: Encoder, file: Path) -> list[str]:
    """Names of encoders that the file would fit, for the message that it does not fit this one."""
    from voco.weights.recognise import recognise

    try:
        guesses = recognise(file)
        return [g.describe() for g in guesses if (g.arch, g.arguments) != (encoder.name, encoder.arguments)][:3]
    except InputError:
        return []


def _refusal(
    report: LoadReport, problem: str, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], others: list[str]
) -> str:
    lines = [
        f"{report.file} does not fit encoder {report.encoder}: {problem}",
        f"the encoder still wants {_examples([f'{k} {tuple(state[k].shape)}' for k in report.missing])}",
        f"the file has, not used, {_examples([f'{k} {tuple(tensors[k].shape)}' for k in report.unexpected])}",
    ]
    if others:
        lines.append(f"it looks like {' or '.join(others)}")
    return "\n".join([*lines, "nothing was loaded"])


def _examples(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    more = f", … ({len(keys)} in all)" if len(keys) > EXAMPLES else ""
    return ", ".join(keys[:EXAMPLES]) + more
