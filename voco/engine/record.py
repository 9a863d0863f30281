"""``run.json``: everything about a run that is neither a setting nor a metric."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from voco.files import read_json, write_json

_PACKAGES = ("voco-ct", "torch", "monai", "accelerate", "SimpleITK", "blosc2", "numpy", "timm", "torchvision")


class RunRecord:
    """Keeps ``run.json`` true while a run goes on: state ``running``, then ``finished``, ``stopped`` or ``failed``.

    A resumed run appends to ``sessions`` and adds up its wall time; nothing of earlier sessions is lost.

    Args:
        out: run folder.
        active: only the main process writes.
        plugins: name and digest of each plugin in use.
    """

    def __init__(self, out: Path, *, active: bool, plugins: Sequence[Mapping[str, str]] = ()):
        self.path, self.active = Path(out) / "run.json", active
        self._start = time.monotonic()
        self.values = read_record(out)
        self.values["state"] = "running"
        sessions = self.values.setdefault("sessions", [])
        sessions.append({"started": _now(), "state": "running", "versions": versions(), "git_commit": git_commit()})
        if plugins:
            sessions[-1]["plugins"] = self.values["plugins"] = list(plugins)
        self._session = sessions[-1]

    def update(self, **values) -> None:
        """Set top-level entries and write."""
        self.values.update(values)
        self._write()

    def session(self, **values) -> None:
        """Set entries of this session (device, processes, first step …) and write."""
        self._session.update(values)
        self._write()

    def close(self, state: str, **values) -> None:
        """Write the exit state and the wall time.

        Args:
            state: ``finished``, ``stopped`` (by a signal, after a checkpoint) or ``failed``.
        """
        self._session.update(state=state, seconds=round(time.monotonic() - self._start, 3), **values)
        self.values["state"] = state
        self.values["wall_seconds"] = round(sum(s.get("seconds", 0.0) for s in self.values["sessions"]), 3)
        self._write()

    def fail(self, error: BaseException, **values) -> None:
        """Close with what ended the run."""
        self.close("failed", error=f"{type(error).__name__}: {error}"[:500], **values)

    def _write(self) -> None:
        if self.active:
            write_json(self.path, self.values, indent=1, default=str)


def read_record(out: Path) -> dict:
    """What ``run.json`` of a run folder holds; empty where there is none, or a power cut left it torn."""
    return read_json(Path(out) / "run.json")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the installed source tree, with ``+changes`` when it was edited; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_device(accelerator) -> dict:
    """What the run computes on."""
    import torch

    device = accelerator.device
    facts = {"device": str(device), "processes": accelerator.num_processes, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    facts |= {"precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)}
    return facts


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
