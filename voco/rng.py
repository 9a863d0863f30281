"""The only source of randomness for data: generators that depend on nothing but (seed, epoch, index)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*key: int | str) -> int:
    """Map a key such as ``(seed, epoch, index)`` to 63 well-mixed bits; the same key gives the same bits everywhere."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one key. Draws do not depend on workers, processes or on what was drawn before.

    Args:
        key: for example ``(seed, epoch, index)``; strings separate streams (``generator(seed, "split")``).
    """
    # Late: processes that only need seeds (phantoms) start a second and a half sooner.
    import torch

    return torch.Generator().manual_seed(derive_seed(*key))
