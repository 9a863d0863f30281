"""The SwinUNETR encoder against MONAI's full network, and against the sizes of the published files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voco.encoders import create_encoder


@pytest.fixture(scope="module")
def pair():
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(3)
    full = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, use_v2=True).eval()
    encoder = create_encoder("swinunetr_t").eval()
    own = encoder.state_dict().keys()
    encoder.load_state_dict({k: v for k, v in full.state_dict().items() if k in own}, strict=True)
    return full, encoder


def test_same_maps_as_monai_in_its_own_frame(pair):
    """The input is oriented to RAS with numpy, from what the axes mean, and the maps are turned back the same way."""
    full, encoder = pair
    hu = np.random.default_rng(0).integers(-400, 500, (64, 64, 64)).astype(np.int16)  # toward S, P, L
    ras = hu.transpose(2, 1, 0)[::-1, ::-1, :]
    x = torch.from_numpy(((np.clip(ras, -175, 250) + 175) / 425).astype(np.float32))[None, None]
    with torch.inference_mode():
        hidden = full.swinViT(x, True)
        expected = [
            full.encoder1(x),
            full.encoder2(hidden[0]),
            full.encoder3(hidden[1]),
            full.encoder4(hidden[2]),
            hidden[3],
            full.encoder10(hidden[4]),
        ]
        prepared = encoder.prepare(torch.from_numpy(hu)[None, None])
        torch.testing.assert_close(prepared, x, rtol=0, atol=1e-6)
        found = encoder.decoder_maps(prepared)
        pooled = encoder.pool(prepared)
    for theirs, ours in zip(expected, found):
        canonical = theirs.numpy()[:, :, ::-1, ::-1, :].transpose(0, 1, 4, 3, 2)
        np.testing.assert_allclose(ours.numpy(), canonical, rtol=0, atol=1e-5)
    embedding = torch.cat([m.mean((2, 3, 4)) for m in (*expected[:4], expected[5])], 1)
    assert embedding.shape == (1, 24 * 12)
    torch.testing.assert_close(pooled, embedding, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "features", "encoder_millions", "transformer_millions", "megabytes"),
    [("b", 48, 53.16, 18.64, 220.19), ("l", 96, 212.00, 73.89, 855.53), ("h", 192, 847.28, 294.86, 3396.6)],
)
def test_parameter_counts_of_the_published_files(size, features, encoder_millions, transformer_millions, megabytes):
    with torch.device("meta"):
        encoder = create_encoder(f"swin_{size}")
    state = encoder.state_dict()
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(encoder_millions, abs=0.006)
    assert sum(p.numel() for p in encoder.swinViT.parameters()) / 1e6 == pytest.approx(transformer_millions, abs=0.006)
    assert len(state) == 145
    assert {key.split(".")[0] for key in state} == {
        "swinViT",
        "encoder1",
        "encoder2",
        "encoder3",
        "encoder4",
        "encoder10",
    }
    assert sum(v.numel() * v.element_size() for v in state.values()) / 1e6 == pytest.approx(megabytes, rel=0.001)
    assert encoder.num_features == encoder.pyramid_features == 24 * features
    assert [info["num_chs"] // features for info in encoder.feature_info] == [1, 1, 2, 4, 16]
    assert [info["reduction"][0] for info in encoder.feature_info] == [1, 2, 4, 8, 32]


def test_stochastic_depth_reaches_the_blocks():
    encoder = create_encoder("swin_t", drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in encoder._stages for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, 8), abs=1e-6)
    assert encoder.arguments == {"drop_path_rate": 0.3}
