"""A trained study model on disk: the encoder as any other, the rest beside it, and how to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voco import plugins
from voco.errors import InputError
from voco.files import write_together
from voco.tasks import TASKS, create_task
from voco.tasks.base import Output, Task
from voco.transfer.heads import NeighbourHead, Standardise
from voco.transfer.model import HeadOptions, StudyModel, output_widths
from voco.transfer.views import View

MODEL_FILE, HEAD_FILE, ENCODER_FOLDER = "model.json", "head.safetensors", "encoder"
_FORMAT = 1


@dataclass
class TrainedModel:
    """A model with everything that new scans need.

    Attributes:
        model: in evaluation mode.
        facts: what else ``model.json`` holds, e.g. ``operating_points``.
    """

    model: StudyModel
    task: Task
    view: View
    facts: dict[str, Any]


def build_model(
    encoder, task: Task, options: HeadOptions, *, learn: str, chunk: int, mode: str, bank: int = 0, probe=None
) -> StudyModel:
    """A study model with the head of a mode, weights still to be filled.

    Args:
        mode: ``full``, ``linear`` (standardised features, one linear layer) or ``knn``.
        bank: training vectors of ``knn``.
        probe: (neighbours, temperature) of ``knn``.
    """
    model = StudyModel(encoder, output_widths(task.outputs), options, learn=learn, chunk=chunk)
    if mode == "linear":
        model.neck.insert(0, Standardise(model.num_features))
    elif mode == "knn":
        model.head = NeighbourHead(task.outputs, bank, model.num_features, *probe)
    return model


def save_model(folder: Path, model: StudyModel, task: Task, view: View, *, mode: str, facts: Mapping[str, Any]) -> Path:
    """Write ``model.json`` and ``head.safetensors``; the encoder is exported beside them by ``save_encoder``.

    Args:
        facts: anything JSON can hold, e.g. the operating points fixed on validation.
    """
    from safetensors.torch import save

    head = {
        k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items() if not k.startswith("encoder.")
    }
    knn = model.head if isinstance(model.head, NeighbourHead) else None
    record = {
        "format": _FORMAT,
        "task": {"name": task.name, "version": task.version, "options": asdict(task.options)},
        "outputs": [asdict(output) for output in task.outputs],
        "mode": mode,
        "learn": model.learn,
        "chunk": model.chunk,
        "head": asdict(model.options),
        "view": asdict(view),
        "windows": [list(pair) for pair in model.encoder.input_spec.windows],
        "knn": None if knn is None else {"bank": len(knn.bank), "probe": [knn.neighbours, knn.temperature]},
        **facts,
    }
    if needed := plugins.record_of(TASKS.owner(task.name)):
        record["plugins"] = needed
    # model.json comes last: a folder that has it is whole
    text = json.dumps(record, indent=1) + "\n"
    write_together({folder / HEAD_FILE: save(head), folder / MODEL_FILE: text.encode()})
    return folder


def load_model(folder: str | Path) -> TrainedModel:
    """Read what ``save_model`` wrote.

    Raises:
        InputError: no model there, or of another version.
    """
    from safetensors.torch import load_file

    from voco.encoders import load_encoder

    folder = Path(folder)
    if not (folder / MODEL_FILE).is_file():
        raise InputError(
            f"{folder} holds no trained model ({MODEL_FILE} is missing); give the folder of a finetune run"
        )
    try:
        record = json.loads((folder / MODEL_FILE).read_text())
    except ValueError as error:
        raise InputError(f"{folder / MODEL_FILE} is not readable: {error}") from None
    if record.get("format") != _FORMAT:
        raise InputError(f"{folder / MODEL_FILE} has format {record.get('format')}; this version reads {_FORMAT}")
    if record["task"]["name"] not in TASKS:
        plugins.check(folder / MODEL_FILE, record.get("plugins"))
    options = {name: value for name, value in record["task"]["options"].items() if name != "name"}
    task = create_task(record["task"]["name"], **options)
    if task.version != record["task"]["version"]:
        raise InputError(
            f"{folder} was trained for version {record['task']['version']} of task {task.name}; this is version "
            f"{task.version}: train again"
        )
    outputs = tuple(Output(**{**o, "classes": tuple(o["classes"])}) for o in record.get("outputs", ()))
    if outputs and outputs != task.outputs:
        task.adopt(outputs)
    encoder = load_encoder(folder / ENCODER_FOLDER)
    knn = record["knn"] or {}
    model = build_model(
        encoder,
        task,
        HeadOptions(**record["head"]),
        learn=record["learn"],
        chunk=record["chunk"],
        mode=record["mode"],
        bank=knn.get("bank", 0),
        probe=knn.get("probe"),
    )
    weights = load_file(folder / HEAD_FILE)
    own = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    if own != {k: v.shape for k, v in weights.items()}:
        raise InputError(f"{folder / HEAD_FILE} does not fit the model that {MODEL_FILE} describes; copy the run again")
    model.load_state_dict(weights, strict=False)
    view = View(**{k: tuple(v) if isinstance(v, list) else v for k, v in record["view"].items()})
    return TrainedModel(model.eval(), task, view, record)
