"""Decoders as features, against the whole networks of MONAI and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voco.encoders import create_encoder, load_encoder
from voco.encoders.decoders import PlainConvUNet
from voco.encoders.nnunet import PLAIN_SPEC
from voco.encoders.swinunetr import _HostLinspace
from voco.errors import InputError
from voco.transfer.model import HeadOptions, StudyModel, stage_of_parameters
from voco.weights.contents import find_tensors
from voco.weights.examine import examine, misfit
from voco.weights.export import save_encoder


def monai(use_v2):
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(7)
    return SwinUNETR(in_channels=1, out_channels=3, feature_size=12, use_v2=use_v2).eval()


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """MONAI's network and a file of it as VoComni's."""
    network, file = monai(True), tmp_path_factory.mktemp("vocomni") / "VoComni.pt"
    torch.save({"state_dict": network.state_dict()}, file)
    return network, file


@pytest.fixture(scope="module")
def encoder(whole):
    return create_encoder("swin_t", checkpoint=whole[1], decoder=True).eval()


def check_beside_monai(network, encoder):
    """Input and maps are turned with numpy; at half the smallest size, to save time."""
    hu = np.random.default_rng(0).integers(-400, 500, (64, 32, 32)).astype(np.int16)  # toward S, P, L
    ras = hu.transpose(2, 1, 0)[::-1, ::-1, :]
    x = torch.from_numpy(((np.clip(ras, -175, 250) + 175) / 425).astype(np.float32))[None, None]
    seen = {}
    handle = network.decoder1.register_forward_hook(lambda module, inputs, output: seen.update(map=output))
    usual = encoder.input_spec
    encoder.input_spec = replace(usual, min_size=(32, 32, 32))
    try:
        with torch.inference_mode():
            network(x)
            found = encoder.forward_decoder(encoder.prepare(torch.from_numpy(hu)[None, None]))
            encoder._decoded = lambda prepared: found  # the average alone
            pooled = encoder.pooled_decoder(x)
    finally:
        handle.remove()
        encoder.input_spec = usual
        encoder.__dict__.pop("_decoded", None)
    canonical = seen["map"].numpy()[:, :, ::-1, ::-1, :].transpose(0, 1, 4, 3, 2)
    assert found.shape == (1, 12, 64, 32, 32)
    np.testing.assert_allclose(found.numpy(), canonical, rtol=0, atol=1e-5)
    assert pooled.shape == (1, encoder.decoder_features)
    np.testing.assert_allclose(pooled.numpy(), canonical.mean((2, 3, 4), dtype=np.float64), rtol=0, atol=1e-5)


def test_last_map_is_that_of_monai(whole, encoder):
    check_beside_monai(whole[0], encoder)


@pytest.mark.slow
def test_last_map_is_that_of_monai_without_v2(tmp_path):
    network = monai(False)
    torch.save(network.state_dict(), tmp_path / "file.pt")
    check_beside_monai(network, create_encoder("swinunetr_v1_t", checkpoint=tmp_path / "file.pt", decoder=True).eval())


def test_every_tensor_but_the_segmentation_layer_is_loaded(whole, encoder):
    report, state = encoder.load_report, whole[0].state_dict()
    assert (len(report.loaded), report.coverage, report.missing, report.unexpected) == (165, 1.0, (), ())
    assert report.dropped == dict.fromkeys(["out.conv.conv.weight", "out.conv.conv.bias"], "segmentation head")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert encoder.arguments == {"decoder": True}


def test_a_suprem_file_brings_its_decoder(tmp_path):
    state = monai(False).state_dict()
    content = prefixed(prefixed(state, "backbone.") | {"organ_embedding": torch.ones(25, 512)}, "module.")
    torch.save({"net": content, "epoch": 1}, tmp_path / "suprem.pth")
    encoder = create_encoder("swinunetr_v1_t", checkpoint=tmp_path / "suprem.pth", decoder=True)
    assert len(encoder.load_report.loaded) == 157
    assert set(encoder.load_report.dropped.values()) == {"segmentation head"}
    assert torch.equal(encoder.decoder1.transp_conv.conv.weight, state["decoder1.transp_conv.conv.weight"])


def test_files_without_the_decoder_or_with_another_are_refused(whole, encoder):
    state = whole[0].state_dict()
    alone = {key: value for key, value in state.items() if not key.startswith(("decoder", "out."))}
    torn = {key: value for key, value in state.items() if key != "decoder3.transp_conv.conv.weight"}
    other = state | {"decoder3.conv_block.norm1.weight": torch.ones(24)}
    for tensors, objection in (
        (alone, "the file has no decoder, which decoder=True asks for"),
        (torn, "it fills 99.8% of the parameters"),
        (other, "1 tensor more, inside what the encoder also has"),
    ):
        assert objection in misfit(encoder, examine(encoder, find_tensors(tensors, Path("file.pt"))))


def test_saved_encoders_keep_it(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "with", {"method": "test"})
    again = load_encoder(tmp_path / "with")
    assert again.arguments == {"decoder": True}
    assert again.load_report.coverage == 1.0
    assert again.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in again.state_dict().items())

    bare = create_encoder("swin_t", checkpoint=tmp_path / "with", decoder=False)
    assert not hasattr(bare, "pooled_decoder")
    assert len(bare.state_dict()) == 145
    assert set(bare.load_report.dropped.values()) == {"decoder"}
    save_encoder(bare, tmp_path / "without", {"method": "test"})
    with pytest.raises(InputError, match="file has no decoder"):
        create_encoder("swin_t", checkpoint=tmp_path / "without", decoder=True)


@pytest.mark.parametrize("name", ["swinunetr_t", "swinunetr_b", "swinunetr_v1_s"])
def test_the_rest_of_the_encoder_stays_as_it_is(name):
    from monai.networks.nets import SwinUNETR

    width = {"t": 12, "s": 24, "b": 48}[name[-1]]
    with torch.device("meta"), _HostLinspace():
        plain, encoder = create_encoder(name), create_encoder(name, decoder=True)
        full = SwinUNETR(in_channels=1, out_channels=2, feature_size=width, use_v2="v1" not in name).state_dict()
    assert encoder.feature_info == plain.feature_info
    assert (encoder.num_features, encoder.decoder_features) == (24 * width, width)
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    assert {key: value.shape for key, value in full.items() if not key.startswith("out.")} == shapes
    stages = stage_of_parameters(encoder)
    assert {stages[key] for key in stages if key.startswith("decoder")} == {4}  # learns at the rate of the last stage


def test_every_parameter_gets_a_gradient():
    with torch.device("meta"):
        encoder = create_encoder("swin_t", decoder=True)
        encoder.set_grad_checkpointing(True)
        encoder.pooled_decoder(encoder.prepare(torch.zeros(1, 1, 64, 64, 64, dtype=torch.int16))).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in encoder.parameters())


SMALL = {"features_per_stage": (4, 6, 8), "strides": (1, (1, 2, 2), 2), "kernel_sizes": (3, 3, 3)}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    spec = replace(PLAIN_SPEC, min_size=(4, 8, 8))
    return PlainConvUNet(spec, **SMALL, conv_bias=False, norm_eps=1e-5, n_conv_per_stage_decoder=2).eval()


def test_nnunet_beside_monai(unet):
    """MONAI's DynUNet is nnU-Net's network written by others; two convolutions a stage, none with a bias."""
    from monai.networks.nets import DynUNet

    steps, norm = [[1] * 3, [1, 2, 2], [2] * 3], ("INSTANCE", {"affine": True})
    net = DynUNet(3, 1, 2, [[3] * 3] * 3, steps, steps[1:], filters=[4, 6, 8], norm_name=norm).eval()
    names = {"input_block": "stages.0.0", "downsamples.0": "stages.1.0", "bottleneck": "stages.2.0"}
    names |= {f"upsamples.{i}.conv_block": f"decoder.stages.{i}" for i in (0, 1)}
    layers = {"conv1.conv": "0.conv", "norm1": "0.norm", "conv2.conv": "1.conv", "norm2": "1.norm"}
    ours = {f"upsamples.{i}.transp_conv.conv.weight": f"decoder.transpconvs.{i}.weight" for i in (0, 1)}
    ours |= {
        f"{theirs}.{layer}.{kind}": f"{block}.convs.{name}.{kind}"
        for theirs, block in names.items()
        for layer, name in layers.items()
        for kind in ("weight", "bias")
    }
    state = unet.state_dict()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for key, value in net.state_dict().items():
            if key in ours:
                value.copy_(state.pop(ours[key]))
    assert not state
    seen = {}
    net.upsamples[-1].register_forward_hook(lambda module, inputs, output: seen.update(map=output))
    x = torch.randn(2, 1, 8, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        net(x)
        torch.testing.assert_close(unet.forward_decoder(x), seen["map"], rtol=0, atol=1e-5)


def test_size_of_the_public_nnunet():
    """PlainConvUNet with 21 classes has 31,210,889 parameters, its five segmentation layers included."""
    with torch.device("meta"):
        encoder = create_encoder("nnunet_plain", decoder=True)
    widths = [info["num_chs"] for info in encoder.feature_info[:-1]]
    assert sum(p.numel() for p in encoder.parameters()) + sum(21 * (n + 1) for n in widths) == 31_210_889
    assert encoder.decoder_features == 32


def test_nnunet_pads_to_its_strides_and_checkpoints(unet):
    assert unet.input_spec.size_multiple == (2, 4, 4)
    x = unet.prepare(torch.randint(-300, 300, (2, 1, 7, 13, 16), dtype=torch.int16))
    assert x.shape == (2, 1, 8, 16, 16)
    gradients = []
    for enable in (False, True):
        unet.set_grad_checkpointing(enable)
        unet.zero_grad()
        pooled = unet.pooled_decoder(x)
        (pooled * torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape)).sum().backward()
        gradients.append({key: p.grad.clone() for key, p in unet.named_parameters()})
    unet.set_grad_checkpointing(False)
    assert pooled.shape == (2, 4)
    assert all(g.abs().max() > 0 for g in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_nnunet_files_bring_their_decoder(tmp_path):
    """As nnU-Net saves it: layers under two names, the encoder again inside the decoder, segmentation layers."""
    small = {**SMALL, "kernel_sizes": ((1, 3, 3), 3, 3), "n_blocks_per_stage": (1, 1, 1), "decoder": True}
    donor = create_encoder("nnunet_resenc_l", **small)
    assert donor.decoder.stages[1].convs[0].conv.weight.shape == (4, 8, 1, 3, 3)  # kernel of the stage that it rebuilds
    tensors = {"decoder.seg_layers.0.bias": torch.ones(1)}
    for key, value in donor.state_dict().items():
        twice = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        for prefix in ("",) if key.startswith("decoder.") else ("encoder.", "decoder.encoder."):
            tensors |= {prefix + key: value, prefix + twice: value}
    torch.save({"network_weights": tensors}, tmp_path / "checkpoint_final.pth")
    encoder = create_encoder("nnunet_resenc_l", checkpoint=tmp_path / "checkpoint_final.pth", **small)
    assert encoder.load_report.coverage == 1.0
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(InputError, match=r"wants decoder\.stages\.0\.convs\.1"):
        create_encoder(
            "nnunet_resenc_l", checkpoint=tmp_path / "checkpoint_final.pth", **small, n_conv_per_stage_decoder=2
        )


def test_heads_read_it(unet):
    model = StudyModel(unet, {"disease": 1}, HeadOptions(features="decoder"))
    hu = torch.randint(-300, 300, (3, 1, 8, 16, 16), dtype=torch.int16)
    assert model.num_features == 4
    torch.testing.assert_close(model.window_features(hu), unet.pooled_decoder(unet.prepare(hu)))
    with pytest.raises(InputError, match="decoder: true"):
        StudyModel(create_encoder("cnn3d_s"), {"disease": 1}, HeadOptions(features="decoder"))
