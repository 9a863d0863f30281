"""PENet's published file: wrapper, prefix, first name of the network, colour stem."""

from __future__ import annotations

import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.recognise import recognise


@pytest.fixture(scope="module")
def tensors():
    """Names and shapes as in the Kinetics file: 225 tensors."""
    with torch.device("meta"):
        wanted = create_encoder("penet").state_dict()
    generator = torch.Generator().manual_seed(0)
    result = {
        k.replace("penet_blocks", "xnet_blocks"): torch.rand(v.shape, generator=generator) for k, v in wanted.items()
    }
    result["in_conv.0.weight"] = torch.rand(64, 3, 7, 7, 7, generator=generator)
    return result | {"classifier.fc.weight": torch.zeros(600, 2048), "classifier.fc.bias": torch.zeros(600)}


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("penet") / "xnet_kin_90.pth.tar"
    state = {"module." + key: value for key, value in tensors.items()}
    torch.save({"ckpt_info": {"epoch": 90}, "model_name": "XNetClassifier", "model_state": state}, path)
    return path


def test_the_kinetics_file_loads_whole(tensors, file):
    assert len(tensors) == 225
    encoder = create_encoder("penet", checkpoint=file)
    report = encoder.load_report
    assert report.coverage == 1.0
    assert (report.missing, report.unexpected) == ((), ())
    assert report.adapted == {"in_conv.0.weight": "sum of 3 input channels"}
    assert report.dropped == {f"module.classifier.fc.{kind}": "classifier" for kind in ("weight", "bias")}
    assert report.wrapper == ("model_state",)
    state = encoder.state_dict()
    torch.testing.assert_close(state["in_conv.0.weight"], tensors["in_conv.0.weight"].sum(1, keepdim=True))
    for key in state.keys() - {"in_conv.0.weight"}:
        assert torch.equal(state[key], tensors[key.replace("penet_blocks", "xnet_blocks")])


def test_the_file_is_recognised(file):
    best = recognise(file)[0]
    assert (best.arch, best.source.name, best.report.format) == ("penet", "penet.kinetics600", "PENet")


def test_a_missing_block_is_an_error(tensors, tmp_path):
    state = {key: value for key, value in tensors.items() if not key.startswith("encoders.3.xnet_blocks.2.")}
    torch.save({"model_state": state}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="are needed"):
        load_weights(create_encoder("penet"), tmp_path / "file.pth")
