"""SwinUNETR files of VoCo, NVIDIA, MONAI and SuPreM as their projects save them, made from MONAI's own classes."""

from __future__ import annotations

import re

import pytest
import torch

from voco.encoders import create_encoder
from voco.encoders.swinunetr import SWINVIT_SPEC, SwinViTEncoder
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.sources import all_sources


def monai(use_v2):
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(5)
    return SwinUNETR(in_channels=1, out_channels=3, feature_size=12, use_v2=use_v2).state_dict()


@pytest.fixture(scope="module")
def v1():
    return monai(False)


@pytest.fixture(scope="module")
def v2():
    return monai(True)


@pytest.fixture
def transformer():
    """The architecture of swinvit_b, a quarter as wide."""
    encoder = SwinViTEncoder(SWINVIT_SPEC, 12)
    encoder.name = "swinvit_b"
    return encoder


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def bare(state):
    """A SwinTransformer alone, with the layer names of the self-supervised scripts."""
    keys = {k: k.removeprefix("swinViT.").replace(".linear", ".fc") for k in state if k.startswith("swinViT.")}
    return {name: state[key] for key, name in keys.items()}


def assert_holds(encoder, state):
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key]), key


SSL_HEADS = {
    "rotation_head.weight": torch.ones(4, 192),
    "contrastive_head.bias": torch.ones(512),
    "conv.0.weight": torch.ones(96, 192, 3, 3, 3),
    "conv.20.bias": torch.ones(1),
}


@pytest.mark.parametrize("names", ["bare", "swin_vit"])
def test_nvidia_self_supervised_file(names, v1, transformer, tmp_path):
    """``state_dict`` with ``module.``: the transformer and the heads of its three tasks."""
    state = bare(v1) if names == "bare" else prefixed(bare(v1), "swin_vit.")
    torch.save({"epoch": 1, "state_dict": prefixed(state | SSL_HEADS, "module.")}, tmp_path / "model_swinvit.pt")
    report = load_weights(transformer, tmp_path / "model_swinvit.pt")
    assert report.coverage == 1.0
    assert (report.missing, report.unexpected) == ((), ())
    assert sorted(set(report.dropped.values())) == ["projection head", "reconstruction head"]
    assert_holds(transformer, v1)


def test_transformer_files_do_not_fill_a_whole_encoder(v1, tmp_path):
    torch.save({"state_dict": prefixed(bare(v1), "module.")}, tmp_path / "file.pt")
    encoder = create_encoder("swinunetr_v1_t")
    with pytest.raises(InputError, match=r"stem is missing: encoder1\.layer\.conv1"):
        load_weights(encoder, tmp_path / "file.pt")


def test_disruptive_autoencoders_file(v1, transformer, tmp_path):
    """``model``, ``encoder.``, each stage one list deeper, as MONAI's own filter undoes it."""
    state = {re.sub(r"^layers(\d)\.0\.", r"layers\1.0.0.", k).replace(".fc", ".linear"): v for k, v in bare(v1).items()}
    extra = {"mask_token": torch.zeros(1, 12, 1, 1, 1), "norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    content = prefixed(state | extra, "encoder.") | {"out.conv.conv.weight": torch.ones(1, 12, 1, 1, 1)}
    torch.save({"model": content}, tmp_path / "ssl_pretrained_weights.pth")
    report = load_weights(transformer, tmp_path / "ssl_pretrained_weights.pth")
    assert (report.format, report.coverage) == ("Disruptive Autoencoders", 1.0)
    assert (report.missing, report.unexpected) == ((), ())
    assert len(report.dropped) == 4
    assert_holds(transformer, v1)


SUPREM_HEADS = {
    "organ_embedding": torch.ones(25, 512),
    "precls_conv.0.weight": torch.ones(48),
    "GAP.0.bias": torch.ones(768),
    "controller.weight": torch.ones(8, 8, 1, 1, 1),
    "text_to_vision.bias": torch.ones(256),
}
FULL = {
    "monai": lambda s: {"state_dict": s},
    "suprem": lambda s: {"net": prefixed(prefixed(s, "backbone.") | SUPREM_HEADS, "module."), "epoch": 1},
}


@pytest.mark.parametrize("kind", ["monai", "suprem"])
def test_networks_without_v2(kind, v1, tmp_path):
    torch.save(FULL[kind](v1), tmp_path / "file.pth")
    encoder = create_encoder("swinunetr_v1_t")
    report = load_weights(encoder, tmp_path / "file.pth")
    assert len(report.loaded) == 137
    assert report.coverage == 1.0
    assert (report.missing, report.unexpected) == ((), ())
    assert set(report.dropped.values()) == {"decoder", "segmentation head"}
    assert_holds(encoder, v1)


@pytest.mark.parametrize("arch", ["swinunetr_v1_t", "swinvit_b"])
def test_files_with_v2_do_not_fit_networks_without(arch, v2, transformer, tmp_path):
    """They hold every tensor of the older network, whose features would mean nothing without the convolutions."""
    torch.save(v2, tmp_path / "file.pt")
    encoder = transformer if arch == "swinvit_b" else create_encoder(arch)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"8 tensors more(.|\n)*layers1c\.0\.layer\.conv1"):
        load_weights(encoder, tmp_path / "file.pt")
    assert_holds(encoder, before)


def test_voco_v1_training_checkpoint(v2, tmp_path):
    """Student, teacher, their projectors, and an optimiser as an object, which is never made."""
    student = {k: v for k, v in v2.items() if not k.startswith(("decoder", "out."))}
    teacher = {k: v + 1 if v.is_floating_point() else v for k, v in student.items()}
    state = {}
    for name, weights in (("student.", student), ("teacher.", teacher)):
        state |= prefixed(weights | {"proj_head.layer1.0.weight": torch.ones(2, 2)}, name)
    parameter = torch.nn.Parameter(torch.zeros(1))
    content = {"global_step": 7, "state_dict": prefixed(state, "module."), "optimizer": torch.optim.AdamW([parameter])}
    torch.save(content, tmp_path / "model.pt")
    encoder = create_encoder("swin_t")
    for which, wanted in (("auto", student), ("teacher", teacher)):
        report = load_weights(encoder, tmp_path / "model.pt", which=which)
        assert len(report.loaded) == 145
        assert report.which == ("teacher" if which == "teacher" else "student")
        assert "projector" in report.dropped.values()
        assert_holds(encoder, wanted)


def test_records_say_what_the_weights_saw():
    sources = all_sources()
    abdomen, chest = sources["swinunetr_b.voco_ssl"], sources["swinunetr_b.voco_ssl_chest"]
    assert (abdomen.file, abdomen.md5) == (chest.file, chest.md5)
    assert abdomen.input_spec.windows == ((-175.0, 250.0),)
    assert chest.input_spec.windows == ((-1000.0, 500.0),)
    assert chest.input_spec.spacing_mm == (5.0, 1.25, 1.25)  # slices first
    assert {"LIDC-IDRI", "LUNA16", "CT-RATE", "NLST"} <= set(abdomen.data)
    assert sources["swinunetr_v1_b.btcv"].input_spec.spacing_mm == (2.0, 1.5, 1.5)
    trained_before = [s for s in sources.values() if s.arch.startswith(("swinunetr", "swinvit"))]
    assert all(source.arguments == {"merging": "repeated"} for source in trained_before)
    assert {"BTCV", "LIDC-IDRI"} <= set(sources["swinunetr_v1_b.btcv"].data)
    assert sources["swinunetr_v1_t.btcv"].data == ("BTCV",)
    assert sources["swinunetr_v1_b.suprem"].licence == "CC BY-NC-ND 4.0"
    assert not sources["penet.kinetics600"].download
