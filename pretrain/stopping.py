"""Early stopping: the held-out loss decides, where a method says so, and the encoder with the lowest is exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

BEST = "best.safetensors"


def make_watch(config: Mapping, method, accelerator, out: Path):
    """The rule that ``--train.patience`` and ``--train.plateau`` ask for; None where they do not."""
    from voco.engine.checkpoint import save_weights
    from voco.engine.watch import Watch

    train = config["train"]
    if not (train.patience or train.plateau):
        return None
    return Watch(
        method.watched,
        higher=False,
        patience=train.patience,
        plateau=train.plateau,
        plateau_key=method.watched,
        factor=train.plateau_factor,
        on_best=lambda step: save_weights(accelerator, method, out / BEST),
    )


def on_all(accelerator, row: dict[str, float]) -> dict[str, float]:
    """The numbers of the main process on every process, so that all of them stop at the same step."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([row])[0] if accelerator.num_processes > 1 else row


def restore_best(method, out: Path, memory: Mapping[str, float]) -> int | None:
    """Put the weights of the best report back; returns its step, None where nothing was watched."""
    from safetensors.torch import load_file

    if "best_step" not in memory:
        return None
    method.load_state_dict(load_file(out / BEST))
    return int(memory["best_step"])
