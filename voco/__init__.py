"""Pretrain, load and evaluate encoders for 3D CT.

Importing this package costs nothing: torch and the readers are imported when a name is first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_LAZY = {
    "read_volume": "voco.data.read",
    "Volume": "voco.data.volume",
    "create_encoder": "voco.encoders",
    "load_encoder": "voco.encoders",
    "list_encoders": "voco.encoders",
    "embed": "voco.transfer.features",
    "InputSpec": "voco.encoders.spec",
    "load_plugin": "voco.plugins",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'voco' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
