"""Files of video networks as torchvision and kylemin publish them; what must be refused."""

from __future__ import annotations

import re

import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.recognise import recognise
from voco.weights.sources import all_sources, find_source


def random_state(net):
    """Values that tell tensors and rows apart; variances stay positive."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else torch.tensor(3)
        for key, value in net.state_dict().items()
    }


@pytest.fixture(scope="module")
def s3d_state():
    video = pytest.importorskip("torchvision.models.video")
    return random_state(video.s3d(weights=None))


def kylemin_names(state):
    """The rule backwards, from torchvision's names: literal, one case after the other."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "classifier":
            renamed[".".join(["module", "fc", "0", parts[2]])] = value
            continue
        leaf = parts.pop()
        if parts[2].startswith("branch0"):  # features.5.branch0.{0|1}
            names = [*parts[:3], "0", "conv" if parts[3] == "0" else "bn"]
        elif parts[2].startswith("branch") and len(parts) == 5:  # features.5.branch1.0.{0|1}
            names = [*parts[:4], "conv" if parts[4] == "0" else "bn"]
        elif parts[2].startswith("branch"):  # features.5.branch1.1.{0|1}.{0|1}
            names = [*parts[:4], ("conv_" if parts[5] == "0" else "bn_") + "st"[int(parts[4])]]
        elif len(parts) == 3:  # features.2.{0|1}
            names = [*parts[:2], "conv" if parts[2] == "0" else "bn"]
        else:  # features.0.{0|1}.{0|1}
            names = [*parts[:2], ("conv_" if parts[3] == "0" else "bn_") + "st"[int(parts[2])]]
        names[0] = "base"
        renamed[".".join(["module", *names, leaf])] = value
    return renamed


def test_kylemin_file_is_torchvisions_network_fed_otherwise(s3d_state, tmp_path):
    state = kylemin_names(s3d_state)
    # Names as they stand in the public class.
    for key in ("base.0.bn_t.running_var", "base.5.branch0.0.conv.weight", "base.15.branch3.1.bn.bias", "fc.0.bias"):
        assert f"module.{key}" in state
    assert "module.base.8.branch2.1.conv_s.weight" in state
    assert len(state) == len(s3d_state)
    torch.save(state, tmp_path / "mine.pt")
    torch.save(s3d_state, tmp_path / "torchvision.pth")

    ours = create_encoder("s3d", checkpoint=tmp_path / "mine.pt")
    theirs = create_encoder("s3d", checkpoint=tmp_path / "torchvision.pth")
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert ours.load_report.format == "kylemin S3D"
    assert ours.load_report.coverage == 1.0
    assert not ours.load_report.unexpected
    assert set(ours.load_report.dropped.values()) == {"classifier"}
    assert ours.input_spec.mean == ours.input_spec.std == (0.5,)  # colours from -1 to 1
    assert theirs.input_spec.mean[0] == pytest.approx(0.4010920)
    assert recognise(tmp_path / "mine.pt")[0].arch == "s3d"


def refused(name, state, path, match, **arguments):
    torch.save(state, path)
    encoder = create_encoder(name, **arguments)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=match) as caught:
        load_weights(encoder, path)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    return str(caught.value)


def test_damaged_s3d_files_load_nothing(s3d_state, tmp_path):
    stem = "features.0.0.0.weight"
    renamed = {("stem.weight" if key == stem else key): value for key, value in s3d_state.items()}
    assert stem in refused("s3d", renamed, tmp_path / "a.pth", "stem is missing")

    key = "features.5.branch1.1.1.0.weight"
    turned = s3d_state | {key: s3d_state[key].permute(1, 0, 3, 2, 4)}
    assert key in refused("s3d", turned, tmp_path / "b.pth", "another shape")

    lost = {key: value for key, value in s3d_state.items() if not key.startswith("features.15.branch3")}
    refused("s3d", lost, tmp_path / "c.pth", "100% are needed")


def test_one_project_is_not_the_other(tmp_path):
    """torchvision's R(2+1)D-18 and 34 share most names and differ in mid widths; its MC3 has R3D's names."""
    video = pytest.importorskip("torchvision.models.video")
    message = refused("r3d_18", random_state(video.mc3_18(weights=None)), tmp_path / "mc3.pth", "another shape")
    assert "mc3_18 (torchvision)" in message


def test_ig65m_files_are_known_by_their_names():
    with torch.device("meta"):
        encoder = create_encoder("r2plus1d_34")
    shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert shapes["layer2.0.conv1.0.0.weight"] == (230, 64, 1, 3, 3)
    assert shapes["layer2.0.conv2.0.0.weight"] == (288, 128, 1, 3, 3)
    assert shapes["layer4.0.conv2.0.3.weight"] == (512, 1152, 3, 1, 1)
    sources = [source for source in all_sources().values() if source.arch == "r2plus1d_34"]
    assert sorted((source.input_spec.size, source.data) for source in sources) == [
        ((8, 112, 112), ("IG-65M",)),
        ((8, 112, 112), ("IG-65M", "Kinetics-400")),
        ((32, 112, 112), ("IG-65M",)),
        ((32, 112, 112), ("IG-65M", "Kinetics-400")),
    ]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("r3d_18.kinetics400", "b3b3357e"),
        ("mc3_18.kinetics400", "a90a0ba3"),
        ("r2plus1d_18.kinetics400", "91a641e6"),
        ("s3d.kinetics400", "d76dad2f"),
        ("r2plus1d_34.ig65m_kinetics400_clip32", "ade133f1"),
        ("resnet3d_50.imagenet1k", "0676ba61"),
    ],
)
def test_digests_are_in_the_published_file_names(name, digest):
    source = find_source(*name.split("."))
    assert source.sha256 == digest == re.search(r"-([0-9a-f]{8})\.pth$", source.file)[1]
    assert source.url.endswith(source.file)
    assert source.download


def test_published_records_match_torchvisions():
    """torchvision knows the addresses, accuracies and statistics of its weights."""
    models = pytest.importorskip("torchvision.models")
    published = {w.url: w for name in models.list_models() for w in models.get_model_weights(name)}
    records = [s for s in all_sources().values() if s.url.startswith("https://download.pytorch.org/")]
    assert len(records) >= 25
    for source in records:
        weights, spec = published[source.url], source.input_spec
        transform, [metrics] = weights.transforms(), weights.meta["_metrics"].values()
        assert (spec.rgb_mean or spec.mean * 3) == tuple(transform.mean), source.name
        assert (spec.rgb_std or spec.std * 3) == tuple(transform.std), source.name
        crop = transform.crop_size
        assert spec.size[1:] == tuple(crop if len(crop) == 2 else crop * 2), source.name
        if said := re.search(r"top-1 ([\d.]+) %", source.note):
            assert float(said[1]) == metrics["acc@1"], source.name
