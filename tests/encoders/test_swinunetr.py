"""The SwinUNETR encoder against MONAI's full network, and against the sizes of the published files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voco.encoders import create_encoder
from voco.encoders.swinunetr import SWINVIT_SPEC, SwinViTEncoder, _HostLinspace
from voco.errors import InputError


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


@pytest.fixture(scope="module")
def older():
    """MONAI's network without v2, the SwinUNETR encoder and the transformer alone, all with the same weights."""
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(4)
    full = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, use_v2=False).eval()
    encoders = (create_encoder("swinunetr_v1_t").eval(), SwinViTEncoder(SWINVIT_SPEC, 12).eval())
    for encoder in encoders:
        own = encoder.state_dict().keys()
        encoder.load_state_dict({k: v for k, v in full.state_dict().items() if k in own}, strict=True)
    return full, *encoders


def test_without_v2_same_maps_as_monai(older):
    """At a size below the smallest that the encoder takes for training, to save time: two deepest positions."""
    full, encoder, transformer = older
    x = torch.rand(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = full.swinViT(x, True)
        blocks = (full.encoder1, full.encoder2, full.encoder3, full.encoder4, full.encoder10)
        expected = [block(m) for block, m in zip(blocks, (x, *hidden[:3], hidden[4]))]
        for found, wanted in zip(encoder._maps(x), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        for found, wanted in zip(transformer._maps(x), hidden, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        pooled = transformer.pool(x)
    assert pooled.shape == (1, transformer.num_features) == (1, 16 * 12)
    torch.testing.assert_close(pooled, hidden[4].mean((2, 3, 4)), rtol=0, atol=1e-6)
    assert [info["reduction"][0] for info in transformer.feature_info] == [2, 4, 8, 16, 32]


def test_merging_of_older_monai():
    """As MONAI 1.3 wrote it out, slice by slice; the layers differ in nothing else."""
    new, old = (create_encoder("swin_t", merging=merging) for merging in ("all", "repeated"))
    old.load_state_dict(new.state_dict())
    x = torch.rand(1, 4, 6, 8, 12, generator=torch.Generator().manual_seed(0))
    layer = old.swinViT.layers1[0].downsample
    voxels = [
        x[:, 0::2, 0::2, 0::2, :],
        x[:, 1::2, 0::2, 0::2, :],
        x[:, 0::2, 1::2, 0::2, :],
        x[:, 0::2, 0::2, 1::2, :],
    ]
    voxels += [
        x[:, 1::2, 0::2, 1::2, :],
        x[:, 0::2, 1::2, 0::2, :],
        x[:, 0::2, 0::2, 1::2, :],
        x[:, 1::2, 1::2, 1::2, :],
    ]
    expected = layer.reduction(layer.norm(torch.cat(voxels, -1)))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert not torch.allclose(new.swinViT.layers1[0].downsample(x), expected, atol=1e-3)
    with pytest.raises(InputError, match="all, repeated"):
        create_encoder("swin_t", merging="some")


def test_the_transformer_alone_takes_small_crops_and_trains(older):
    transformer = SwinViTEncoder(SWINVIT_SPEC, 12).train()
    hu = torch.randint(-1000, 1000, (2, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    pooled = transformer(hu)
    (pooled * torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in transformer.parameters())
    assert all(p.grad.abs().max() > 0 for p in transformer.parameters())


def test_sizes_of_the_older_networks():
    """NVIDIA's table: whole networks of 62.1, 15.7 and 4.0 M parameters; 137 of their 159 tensors are the encoder's."""
    from monai.networks.nets import SwinUNETR

    for name, features, millions in (("b", 48, 62.19), ("s", 24, 15.7), ("t", 12, 4.0)):
        with torch.device("meta"), _HostLinspace():
            full = SwinUNETR(in_channels=1, out_channels=14, feature_size=features)
            encoder = create_encoder(f"swinunetr_v1_{name}")
        assert sum(p.numel() for p in full.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
        state = encoder.state_dict()
        assert len(state) == 137
        assert not any("c.0.layer" in key for key in state if key.startswith("swinViT"))
        assert {k: v.shape for k, v in full.state_dict().items() if k in state} == {
            k: v.shape for k, v in state.items()
        }
    with torch.device("meta"):
        transformer = create_encoder("swinvit_b")
    assert transformer.num_features == 768
    assert set(transformer.state_dict()) == {key for key in state if key.startswith("swinViT.")}


def test_stochastic_depth_reaches_the_blocks():
    encoder = create_encoder("swin_t", drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in encoder._stages for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, 8), abs=1e-6)
    assert encoder.arguments == {"drop_path_rate": 0.3}
