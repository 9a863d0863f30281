"""Whole sequence models: published counts, the published computation written out, chunks, cases, starting weights."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from voco.encoders import create_encoder, load_encoder
from voco.encoders.sequences import with_differences
from voco.errors import InputError
from voco.weights.export import save_encoder
from voco.weights.resolve import Weights

PROVENANCE = {"method": "voco2d", "data": ["a set"], "cases": 3, "steps": 5}


def count(module):
    return sum(p.numel() for p in module.parameters())


def hu_volume(batch=2, slices=5, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1100, 1200, (batch, 1, slices, size, size), generator=generator, dtype=torch.int16)


def on_meta(name, **arguments):
    with torch.device("meta"):
        return create_encoder(name, **arguments)


@pytest.fixture(scope="module")
def small():
    """voco2d_lstm on a small 2D network, with running statistics as after some training."""
    torch.manual_seed(0)
    encoder = create_encoder("voco2d_lstm", backbone="resnet18").train()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)  # timm starts the last ones at 0, which hides what comes before
        for _ in range(10):
            encoder(hu_volume(seed=int(torch.randint(100, (1,)))))
    return encoder.eval()


@pytest.fixture(scope="module")
def viptt():
    torch.manual_seed(0)
    return create_encoder("viptt").eval()


@pytest.fixture(scope="module")
def lrcn():
    torch.manual_seed(0)
    return create_encoder("lrcn").eval()


def test_viptt_has_the_published_counts():
    encoder = on_meta("viptt")
    parts = [count(m) for m in (encoder.stem, encoder.slices, encoder.lstm, encoder.dense)]
    assert parts == [6, 14_714_688, 787_456, 263_168]
    assert count(encoder) == sum(parts)
    with torch.device("meta"):
        assert count(encoder.slices) == count(torchvision.models.vgg16().features)
    assert count(encoder) + count(nn.Linear(encoder.num_features, 10)) == 15_775_568
    assert count(encoder) + count(nn.Linear(encoder.num_features, 5)) == 15_770_443
    encoder.slices.requires_grad_(False)  # as in its video stage
    trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert trainable + count(nn.Linear(1024, 10)) == 1_060_880


def test_lrcn_counts():
    encoder = on_meta("lrcn")
    with torch.device("meta"):
        published = torchvision.models.resnext101_32x8d()
        gru = nn.GRU(3 * 2048, 256, bidirectional=True)
    assert count(encoder.slices) == count(published) - count(published.fc) == 86_742_336
    assert count(encoder.gru) == count(gru) == 2 * 3 * (256 * (3 * 2048 + 256) + 2 * 256)
    assert count(encoder) == 86_742_336 + count(gru) + 2 * 512
    assert encoder.num_features == 512


def test_voco2d_lstm_counts():
    """The 2D network's published count, less the ImageNet classifier and two of the three colours of the stem."""
    encoder = on_meta("voco2d_lstm")
    assert count(encoder.slices) == 13_649_388 - 1000 * 1025 - 2 * 24 * 9
    assert encoder.sequence_features == 1024
    assert count(encoder.lstm) == 2 * 4 * (128 * (1024 + 128) + 2 * 128)
    assert count(encoder) == count(encoder.slices) + count(encoder.lstm)
    assert encoder.num_features == 256


def per_slice(network, x):
    """(B, C, D, H, W) to (B, D, F), one slice of one case at a time."""
    return torch.stack(
        [torch.stack([network(case[:, d][None]).mean((2, 3))[0] for d in range(x.shape[2])]) for case in x]
    )


def test_viptt_as_published(viptt):
    """Scaled to [0, 1], a linear map to three channels, torchvision's VGG16, torch's LSTM with one bias, dense."""
    hu = hu_volume(slices=4)
    vgg = torchvision.models.vgg16().features.eval()
    vgg.load_state_dict(dict(zip(vgg.state_dict(), viptt.slices.state_dict().values())))
    x = (hu.float().clamp(-1000, 400) + 1000) / 1400
    colours = torch.stack([x[:, 0] * viptt.stem.weight[i].item() + viptt.stem.bias[i].item() for i in range(3)], 1)
    lstm = nn.LSTM(512, 256, batch_first=True)
    own = {"weight_ih_l0": viptt.lstm.rnn.weight_ih, "weight_hh_l0": viptt.lstm.rnn.weight_hh}
    own |= {"bias_ih_l0": viptt.lstm.rnn.bias, "bias_hh_l0": torch.zeros(1024)}
    lstm.load_state_dict(own)
    with torch.no_grad():
        sequence = per_slice(vgg, colours)
        expected = (lstm(sequence)[0][:, -1] @ viptt.dense.weight.T + viptt.dense.bias).relu()
        torch.testing.assert_close(viptt.prepare(hu), x)
        torch.testing.assert_close(viptt.sequence(x), sequence, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(viptt(hu), expected, rtol=1e-4, atol=1e-6)
    assert expected.any(1).all()


def test_lrcn_as_published(lrcn):
    """Three windows as colours, torchvision's ResNeXt, differences, torch's GRU, mean, running statistics."""
    hu = hu_volume(slices=3)
    network = torchvision.models.resnext101_32x8d().eval()
    theirs = {key.removeprefix("net."): value for key, value in lrcn.slices.state_dict().items()}
    assert set(network.load_state_dict(theirs, strict=False).missing_keys) == {"fc.weight", "fc.bias"}
    network = nn.Sequential(*list(network.children())[:-2])
    channels = []
    # centre and width as published; ImageNet mean and std
    for (centre, width), mean, std in zip(
        ((-600, 1500), (400, 1000), (40, 400)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ):
        low = centre - width / 2
        channels.append((((hu.float() - low) / width).clamp(0, 1) - mean) / std)
    x = torch.cat(channels, 1)
    gru = nn.GRU(3 * 2048, 256, batch_first=True, bidirectional=True)
    gru.load_state_dict(lrcn.gru.rnn.state_dict())
    with torch.no_grad():
        lrcn.norm.running_mean.uniform_(-1, 1)
        lrcn.norm.running_var.uniform_(0.5, 2)
        s = per_slice(network, x)
        before = torch.cat([s[:, :1], s[:, :-1]], 1)
        after = torch.cat([s[:, 1:], s[:, -1:]], 1)
        states = gru(torch.cat([s, s - before, s - after], 2))[0].mean(1)
        expected = (states - lrcn.norm.running_mean) / (lrcn.norm.running_var + 1e-5).sqrt()
        torch.testing.assert_close(lrcn.prepare(hu), x)
        torch.testing.assert_close(lrcn(hu), expected, rtol=1e-4, atol=1e-4)


def test_voco2d_lstm_as_published(small):
    hu = hu_volume(slices=4)
    network = torchvision.models.resnet18().eval()
    theirs = {key.removeprefix("net."): value for key, value in small.slices.state_dict().items()}
    theirs["conv1.weight"] = theirs["conv1.weight"].expand(-1, 3, -1, -1) / 3
    network.load_state_dict(theirs, strict=False)
    network = nn.Sequential(*list(network.children())[:-2])
    lstm = nn.LSTM(512, 128, batch_first=True, bidirectional=True)
    lstm.load_state_dict(small.lstm.rnn.state_dict())
    x = (hu.float().clamp(-175, 250) + 175) / 425
    with torch.no_grad():
        expected = lstm(per_slice(network, x.expand(-1, 3, -1, -1, -1)))[0].amax(1)
        torch.testing.assert_close(small(hu), expected, rtol=1e-4, atol=1e-5)


def test_differences_by_hand():
    x = torch.tensor([[1.0, 4.0, 9.0]]).reshape(1, 3, 1)
    assert with_differences(x).tolist() == [[[1, 0, -3], [4, 3, -5], [9, 5, 0]]]
    assert with_differences(x[:, :1]).tolist() == [[[1, 0, 0]]]


@pytest.mark.parametrize("name", ["viptt", "small"])
def test_cases_are_independent_and_slices_are_not(name, request):
    encoder = request.getfixturevalue(name)
    hu = hu_volume(batch=3, slices=3)
    order = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        features = encoder(hu)
        scale = features.abs().max()
        assert (encoder(hu[order]) - features[order]).abs().max() < 1e-5 * scale
        assert (encoder(hu[1:2]) - features[1:2]).abs().max() < 1e-5 * scale
        assert (encoder(hu.flip(2)) - features).abs().max() > 1e-4 * scale


def test_cases_of_lrcn_are_independent_and_slices_are_not(lrcn):
    """From slice vectors on; the network of the slices is shared with the other models."""
    sequence = torch.rand(3, 4, lrcn.sequence_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = lrcn._read(sequence)
        torch.testing.assert_close(lrcn._read(sequence[[2, 0, 1]]), features[[2, 0, 1]])
        torch.testing.assert_close(lrcn._read(sequence[1:2]), features[1:2])
        assert (lrcn._read(sequence.flip(1)) - features).abs().max() > 1e-3


def test_batch_norm_of_lrcn_is_where_cases_touch(lrcn):
    """Published so, in training only; it needs two cases, and there is a way without."""
    sequence = torch.rand(3, 4, lrcn.sequence_features, generator=torch.Generator().manual_seed(0))
    head = copy.deepcopy(lrcn.norm).train()
    states = lrcn.gru(with_differences(sequence))
    assert (head(states)[:2] - head(states[:2])).abs().max() > 1e-2
    assert torch.allclose(lrcn.norm(states)[:2], lrcn.norm(states[:2]))
    lrcn.train()
    try:
        with pytest.raises(InputError, match=r"at least 2 .*head_norm='layer'"):
            lrcn._read(sequence[:1])
    finally:
        lrcn.eval()
    by_case = on_meta("lrcn", head_norm="layer").train()
    assert by_case(torch.zeros(1, 1, 2, 32, 32, dtype=torch.int16, device="meta")).shape == (1, 512)
    with pytest.raises(InputError, match="batch, layer, none"):
        on_meta("lrcn", head_norm="instance")


def test_chunks_change_nothing(small):
    hu = hu_volume(batch=2, slices=5)
    frozen = create_encoder("voco2d_lstm", backbone="resnet18", norm="frozen").train()
    chunked = create_encoder("voco2d_lstm", backbone="resnet18", chunk=3).train()
    results = []
    for encoder in (frozen, chunked):
        encoder.load_state_dict(small.state_dict())
        features = encoder(hu)
        features.square().sum().backward()
        results.append((features.detach(), {k: p.grad for k, p in encoder.named_parameters()}))
        torch.testing.assert_close(features, small(hu), rtol=1e-4, atol=1e-5)
    chunked.set_grad_checkpointing(True)
    assert chunked.slices.grad_checkpointing
    chunked.zero_grad()
    again = chunked(hu)
    again.square().sum().backward()
    results.append((again.detach(), {k: p.grad for k, p in chunked.named_parameters()}))
    for features, gradients in results[1:]:
        torch.testing.assert_close(features, results[0][0], rtol=1e-4, atol=1e-5)
        for key, gradient in gradients.items():
            expected = results[0][1][key]
            assert (gradient - expected).norm() < 1e-4 * expected.norm(), key


def test_folder_of_a_slice_encoder_starts_a_sequence_model(small, tmp_path):
    torch.manual_seed(1)
    slices = create_encoder("slices/resnet18", window=(-150, 250))
    save_encoder(slices, tmp_path / "run" / "encoder", PROVENANCE)
    encoder = create_encoder("voco2d_lstm", backbone="resnet18").eval()
    lstm = copy.deepcopy(encoder.lstm.state_dict())
    report = encoder.load_part(tmp_path / "run")
    hu = hu_volume()
    with torch.inference_mode():
        x = slices.eval().prepare(hu)
        torch.testing.assert_close(encoder.prepare(hu), x, rtol=0, atol=0)  # the weights bring their windows
        torch.testing.assert_close(encoder.sequence(x), slices.sequence(x))
    assert encoder.input_spec.windows == ((-150.0, 250.0),)
    assert encoder.input_spec.size == (48, 192, 192)
    assert all(torch.equal(encoder.lstm.state_dict()[key], value) for key, value in lstm.items())
    assert report is encoder.load_report
    assert report.encoder == "voco2d_lstm"
    assert set(report.missing) == {f"lstm.{key}" for key in lstm}
    assert set(report.loaded) <= {f"slices.{key}" for key in slices.state_dict()}
    assert report.coverage == pytest.approx(count(slices) / count(encoder))

    other = create_encoder("voco2d_lstm", checkpoint=tmp_path / "run").eval()
    assert other.arguments == {"backbone": "resnet18"}
    with torch.inference_mode():
        assert torch.equal(other.sequence(x), encoder.sequence(x))
    assert other.load_report.missing == report.missing
    assert other.input_spec == encoder.input_spec
    asked = create_encoder("voco2d_lstm", checkpoint=tmp_path / "run", window=(-1000, 500)).input_spec
    assert asked == replace(encoder.input_spec, windows=((-1000.0, 500.0),))  # an explicit window wins
    assert create_encoder("voco2d_lstm", checkpoint=tmp_path / "run", input_spec=asked).input_spec == asked
    with pytest.raises(InputError, match=r"slices/resnet18, which does not fit a slices/efficientnetv2_rw_t"):
        create_encoder("voco2d_lstm", checkpoint=tmp_path / "run", backbone="efficientnetv2_rw_t")

    # the chain: 2D-VoCo, then what is trained on top of it
    save_encoder(encoder, tmp_path / "next", {"method": "trauma"})
    again = load_encoder(tmp_path / "next")
    assert [step["method"] for step in again.provenance] == ["voco2d", "trauma"]
    with torch.inference_mode():
        assert torch.equal(again(hu), encoder(hu))


def test_imagenet_file_starts_a_sequence_model(tmp_path, monkeypatch):
    rgb = torchvision.models.resnet18().eval()
    torch.save(rgb.state_dict(), tmp_path / "resnet18.pth")
    encoder = create_encoder("voco2d_lstm", backbone="resnet18").eval()
    report = encoder.load_part(tmp_path / "resnet18.pth")
    assert re.match("sum of 3 input channels", report.adapted["slices.net.conv1.weight"])
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    x = torch.rand(1, 1, 2, 32, 32)
    with torch.inference_mode():
        expected = per_slice(nn.Sequential(*list(rgb.children())[:-2]), x.expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(encoder.sequence(x), expected, rtol=1e-4, atol=1e-5)
    assert encoder.provenance == [{"source": "file", "file": "resnet18.pth"}]
    assert encoder.input_spec.mean == (0.0,)  # fed as the published model, not as ImageNet

    monkeypatch.setattr("voco.weights.resolve._download", lambda source: Weights(tmp_path / "resnet18.pth", source))
    encoder.load_part("tv_in1k")
    assert [step["source"] for step in encoder.provenance] == ["slices/resnet18.tv_in1k"]

    # by the whole name of the part, which also names the network of the slices
    other = create_encoder("voco2d_lstm", checkpoint="slices/resnet18.tv_in1k").eval()
    assert other.arguments == {"backbone": "resnet18"} and other.input_spec == encoder.input_spec
    assert other.provenance == encoder.provenance and other.load_report.coverage == encoder.load_report.coverage
    with torch.inference_mode():
        assert torch.equal(other.sequence(x), encoder.sequence(x))
    with pytest.raises(InputError, match=r"unknown weights tag 'tv_in2k'; did you mean slices/resnet18\.tv_in1k"):
        create_encoder("voco2d_lstm", checkpoint="slices/resnet18.tv_in2k")


def test_vgg_file_starts_viptt(viptt, tmp_path):
    """Whole 2D network, stem in front untouched; a file that lacks a part is refused and changes nothing."""
    encoder = copy.deepcopy(viptt)
    theirs = {key.removeprefix("net."): torch.rand_like(v) for key, v in viptt.slices.state_dict().items()}
    stem = encoder.stem.weight.clone()
    torch.save(theirs | {"classifier.0.weight": torch.rand(4, 4)}, tmp_path / "vgg16.pth")
    report = encoder.load_part(tmp_path / "vgg16.pth")
    assert all(torch.equal(encoder.slices.state_dict()[f"net.{key}"], value) for key, value in theirs.items())
    assert torch.equal(encoder.stem.weight, stem)
    assert encoder.input_spec == viptt.input_spec
    heads = ("stem", "lstm.rnn", "dense")
    assert {key.rpartition(".")[0] for key in report.missing} == set(heads)
    assert report.coverage == pytest.approx(14_714_688 / count(encoder))

    encoder = copy.deepcopy(viptt)
    lost = next(reversed(theirs))
    torch.save({key: value for key, value in theirs.items() if key != lost}, tmp_path / "torn.pth")
    with pytest.raises(InputError, match=r"torn\.pth does not fit"):
        encoder.load_part(tmp_path / "torn.pth")
    assert all(torch.equal(value, viptt.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert encoder.load_report is None


def test_folders_that_do_not_fit_are_refused(tmp_path):
    windows = [(-1000, 500), (-175, 250)]
    save_encoder(create_encoder("slices/resnet18", window=windows), tmp_path / "two", PROVENANCE)
    encoder = create_encoder("voco2d_lstm", backbone="resnet18")
    with pytest.raises(InputError, match=r"create it with window=\[\(-1000.0, 500.0\), \(-175.0, 250.0\)\]"):
        encoder.load_part(tmp_path / "two")
    assert create_encoder("voco2d_lstm", backbone="resnet18", window=windows).load_part(tmp_path / "two").coverage > 0.9
    with pytest.raises(InputError, match="no weights at"):
        encoder.load_part(tmp_path / "none")
    with pytest.raises(InputError, match="holds a slices/resnet18, which does not fit a slices/resnet10t"):
        create_encoder("voco2d_lstm", backbone="resnet10t").load_part(tmp_path / "two")
