"""Full training state, written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import torch
from torch import nn

from voco.errors import InputError
from voco.files import sync, whole

_PREFIX = "step-"
_FORMAT = 1


def folder_name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints under ``root``, oldest first. Torn ones never carry the final name."""
    return sorted(p for p in Path(root).glob(f"{_PREFIX}*") if (p / "state.json").is_file())


def find_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose files have the sizes that were written; damaged ones are passed over."""
    for folder in reversed(list_checkpoints(root)):
        if damage(folder) is None:
            return folder
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        return f"state.json cannot be read: {error}"
    if state.get("format") != _FORMAT:
        return f"format {state.get('format')} is not {_FORMAT}, which this version reads"
    for name, size in state["files"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


class Checkpoints:
    """Saves and loads the state of a run.

    One folder per checkpoint: ``model.safetensors`` (encoder, projectors, teacher, buffers), ``optimizer.pt``
    (optimizer and loss scaler), ``rng-RANK.pt``, ``state.json`` (step, counters, sizes of the other files).

    Args:
        root: ``runs/x/checkpoints``; shared by all processes.
        keep: newest checkpoints to keep.
        accelerator: for rank, barriers and the scaler.
    """

    def __init__(self, root: Path, *, keep: int, accelerator):
        self.root, self.keep, self.accelerator = Path(root), keep, accelerator

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> Path:
        """Write ``step-<n>`` beside, then rename it; older checkpoints beyond ``keep`` are removed afterwards.

        Args:
            model: the unwrapped method.
            state: JSON-able loop state.
        """
        from safetensors.torch import save_file

        final, part = self.root / folder_name(step), self.root / f".part-{folder_name(step)}"
        main = self.accelerator.is_main_process
        if main:
            for torn in self.root.glob(f".part-{_PREFIX}*"):  # left by a process that was killed while it saved
                shutil.rmtree(torn, ignore_errors=True)
            part.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        torch.save(_rng_state(), part / f"rng-{self.accelerator.process_index}.pt")
        if main:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part / "model.safetensors")
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            torch.save({"optimizer": _unwrap(optimizer).state_dict(), "scaler": scaler}, part / "optimizer.pt")
        self.accelerator.wait_for_everyone()
        if main:
            files = {p.name: p.stat().st_size for p in sorted(part.iterdir())}
            record = {"format": _FORMAT, "step": step, **state, "files": files}
            (part / "state.json").write_text(json.dumps(record, indent=1))
            for path in part.iterdir():
                sync(path)
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
            sync(self.root)
            self._point_last_to(final)
            for old in list_checkpoints(self.root)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return final

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        """Put a checkpoint back into ``model`` (unwrapped) and ``optimizer``; returns the loop state.

        Raises:
            InputError: the folder is no whole checkpoint, or belongs to another model.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / "state.json").is_file():
            raise InputError(f"{folder} is no checkpoint (no state.json); give a step-… folder or its run folder")
        if problem := damage(folder):
            raise InputError(f"checkpoint {folder} is damaged: {problem}. Remove it and resume from an older one")
        weights = load_file(folder / "model.safetensors")
        _check_same_model(model, weights, folder)
        model.load_state_dict(weights)
        saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        _unwrap(optimizer).load_state_dict(saved["optimizer"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        rng = folder / f"rng-{self.accelerator.process_index}.pt"
        if rng.is_file():  # absent after a change of the number of processes
            _restore_rng(torch.load(rng, map_location="cpu", weights_only=True))
        return json.loads((folder / "state.json").read_text())

    def _point_last_to(self, final: Path) -> None:
        link, fresh = self.root / "last", self.root / ".last"
        with contextlib.suppress(OSError):  # file systems without links: `last` is a convenience, never read by us
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(final.name)
            fresh.replace(link)


def save_weights(accelerator, module: nn.Module, path: Path) -> None:
    """Write parameters and buffers whole or not at all, on the main process; the others wait for it."""
    from safetensors.torch import save_file

    if accelerator.is_main_process:
        with whole(path) as place:
            save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, place)
    accelerator.wait_for_everyone()


def _unwrap(optimizer):
    return getattr(optimizer, "optimizer", optimizer)


def _check_same_model(model: nn.Module, weights: dict, folder: Path) -> None:
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    saved = {k: tuple(v.shape) for k, v in weights.items()}
    if own != saved:
        differing = sorted(k for k in {*own, *saved} if own.get(k) != saved.get(k))
        lines = "".join(f"\n  {k}: checkpoint {saved.get(k)}, model {own.get(k)}" for k in differing[:10])
        raise InputError(
            f"{folder} was written by another model: {len(differing)} tensors differ.{lines}\n"
            "Resume with the settings of that run, or use --encoder.weights to start a new run from its encoder"
        )


def _rng_state() -> dict:
    version, internal, gauss = random.getstate()
    state = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_rng(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
