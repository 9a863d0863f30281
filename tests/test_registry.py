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


def test_names_under_a_prefix_are_made_when_asked_for():
    def make(name):
        if not name.endswith(("1", "2")):
            raise InputError(f"no thing {name}")
        return int(name[-1])

    registry: Registry[int] = Registry("thing")
    registry.register("plain")(0)
    registry.register_prefix("many/", make, lambda: ["many/a1", "many/b2"], "very many")
    assert registry["many/a1"] == 1
    assert registry.canonical("many/b2") == "many/b2"
    assert "many/b2" in registry
    assert "many/c3" not in registry
    with pytest.raises(InputError, match="no thing many/c3"):
        registry["many/c3"]
    assert list(registry) == registry.names() == ["plain"]
    assert registry.names("many/*2") == ["many/b2"]
    assert registry.aliases("many/a1") == []
    assert registry.prefixes == {"many/": "very many"}
    with pytest.raises(InputError, match="Known: plain, many/NAME"):
        registry["plane2"]


def test_seeds_need_no_torch():
    code = "import sys, voco.rng, voco.phantom; voco.rng.derive_seed(1, 'a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
