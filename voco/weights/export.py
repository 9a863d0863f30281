"""Encoder folders: ``model.safetensors``, ``config.json``, a model card and the fingerprints of the scans seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from voco import __version__, plugins
from voco.encoders.base import ENCODERS, Encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.files import write_together
from voco.weights.card import model_card
from voco.weights.folder import (
    CARD_FILE,
    CONFIG_FILE,
    FINGERPRINTS,
    FORMAT,
    WEIGHTS_FILE,
    find_encoder_folder,
    read_config,
)
from voco.weights.load import load_weights


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    provenance: dict,
    card: str | None = None,
    fingerprints: bytes | None = None,
) -> Path:
    """Write an encoder so that ``voco.load_encoder(folder)`` gives the same features, bit for bit.

    Each file is written beside its place and renamed; ``config.json`` comes last, so a folder that has it is whole.

    Args:
        encoder: made by ``create_encoder`` or ``load_encoder``.
        folder: is created; an encoder that is already there is replaced.
        provenance: this training, for people and for JSON. Keys that the model card understands: ``method``, ``data``,
            ``cases``, ``steps``, ``settings`` (dict), ``results`` (dict), ``license``, ``citation``; others are
            listed. It is appended to what the encoder already went through.
        card: text for the top of the model card, Markdown.
        fingerprints: of the scans of this training (``voco.data.fingerprint``), kept beside those of the trainings
            before; the entry of the history names the file.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    if encoder.name not in ENCODERS:
        raise InputError("only encoders made by create_encoder or load_encoder can be exported (no registered name)")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seen = dict(encoder.fingerprints)
    if fingerprints is not None:
        name = FINGERPRINTS.replace("*", hashlib.sha256(fingerprints).hexdigest()[:16])
        seen[name], provenance = fingerprints, provenance | {"fingerprints": name}
    history = [*encoder.provenance, provenance]
    config = _config(encoder, history)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in encoder.state_dict().items()}
    contents = seen | {
        WEIGHTS_FILE: save(state, metadata={"format": "pt"}),
        CARD_FILE: model_card(config, card).encode(),
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
    }

    def make_room() -> None:
        # Without its config the folder is no encoder, so new weights never stand beside an old config.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for old in {path.name for path in folder.glob(FINGERPRINTS)} - set(seen):
            (folder / old).unlink()

    write_together({folder / name: data for name, data in contents.items()}, make_room)
    return folder


def load_encoder(source: str | Path) -> Encoder:
    """See ``voco.encoders.load_encoder``."""
    from voco.weights.resolve import from_hub, is_hub_id

    path = Path(source).expanduser()
    if not path.exists() and is_hub_id(str(source)):
        path = from_hub(str(source))
    folder = find_encoder_folder(path)
    if folder is None and path.is_file():
        from voco.weights.recognise import load_recognised

        return load_recognised(path)
    if folder is None:
        raise InputError(
            f"{source} is not an encoder folder ({CONFIG_FILE}, {WEIGHTS_FILE}), a run folder with one in encoder/, "
            f"a weights file or a Hugging Face id owner/name"
        )
    config = read_config(folder)
    arch = ENCODERS[config["arch"]]
    arch.check_arguments(config["arch"], config["arguments"])
    encoder = arch.build(InputSpec.from_dict(config["input_spec"]), **config["arguments"])
    encoder.name, encoder.arguments = config["arch"], dict(config["arguments"])
    encoder.to(getattr(torch, config["dtype"]))
    load_weights(encoder, folder)
    return encoder.eval()


def _config(encoder: Encoder, history: list[dict]) -> dict:
    config = {
        "format": FORMAT,
        "voco_version": __version__,
        "arch": encoder.name,
        "arguments": encoder.arguments,
        "input_spec": encoder.input_spec.to_dict(),
        "num_features": encoder.num_features,
        "pyramid_features": encoder.pyramid_features,
        "feature_info": encoder.feature_info,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "dtype": str(next(encoder.parameters()).dtype).removeprefix("torch."),
        "provenance": history,
    }
    if needed := plugins.record_of(ENCODERS.owner(encoder.name)):
        config["plugins"] = needed
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise InputError(f"provenance must be plain JSON values: {error}") from error
