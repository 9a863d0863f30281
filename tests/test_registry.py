from __future__ import annotations

import subprocess
import sys

import pytest

from voco.errors import InputError
from voco.registry import Registry


def test_aliases_lead_to_the_name_and_back():
    registry: Registry[int] = Registry("thing")
    registry.register("long_name", "short", "old")(1)
    registry.register("other")(2)
    assert registry.aliases("long_name") == registry.aliases("old") == ["short", "old"]
    assert registry.aliases("other") == []
    with pytest.raises(InputError, match="did you mean long_name"):
        registry.aliases("long_nam")


def test_seeds_need_no_torch():
    code = "import sys, voco.rng, voco.phantom; voco.rng.derive_seed(1, 'a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
