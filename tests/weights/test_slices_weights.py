"""Files of 2D networks in slice encoders: timm's, torchvision's, 2D-VoCo's; features against timm's own network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.sources import find_source, sources_of

timm = pytest.importorskip("timm")


def published(model, **arguments):
    torch.manual_seed(0)
    net = timm.create_model(model, **arguments).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand_like(value))
        elif value.is_floating_point():
            value += 0.05 * torch.randn_like(value)
    return net


def save(path, net, prefix=""):
    save_file({prefix + key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return path


def slices_of(x):
    return x.transpose(1, 2).flatten(0, 1)


@pytest.fixture(scope="module")
def net():
    return published("resnet10t")


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    return save(tmp_path_factory.mktemp("timm") / "resnet10t.safetensors", net)


HU = torch.randint(-400, 500, (2, 1, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.int16)


def test_three_windows_give_timms_features(net, file):
    windows = [(-1350, 150), (-100, 900), (-160, 240)]
    encoder = create_encoder("slices/resnet10t", checkpoint=file, window=windows).eval()
    colours = [((HU.float().clamp(low, high) - low) / (high - low)) for low, high in windows]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (slices_of(torch.cat(colours, 1)) - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = net.forward_features(images)
        found = encoder.forward_features(encoder.prepare(HU))
    torch.testing.assert_close(slices_of(found), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    report = encoder.load_report
    assert report.coverage == 1
    assert report.adapted == {}
    assert report.dropped == {"fc.weight": "classifier", "fc.bias": "classifier"}
    assert report.format == "timm"
    assert not report.unexpected


def test_one_window_sums_the_stem(net, file):
    encoder = create_encoder("slices/resnet10t", checkpoint=file).eval()
    x = encoder.prepare(HU)
    with torch.inference_mode():
        expected = net.forward_features(slices_of(x).expand(-1, 3, -1, -1))
        found = encoder.forward_features(x)
    torch.testing.assert_close(slices_of(found), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert encoder.load_report.adapted == {"net.conv1.0.weight": "sum of 3 input channels"}


def test_two_equal_windows_are_one(file):
    one = create_encoder("slices/resnet10t", checkpoint=file).eval()
    two = create_encoder("slices/resnet10t", checkpoint=file, window=[(-175, 250)] * 2).eval()
    with torch.inference_mode():
        expected = one(HU)
        torch.testing.assert_close(two(HU), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    rule = "sum of 3 input channels, then repeated over 2 windows / 2"
    assert two.load_report.adapted == {"net.conv1.0.weight": rule}


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_heads_are_left_out_whatever_they_are_called(model, tmp_path):
    """A head with its own norm, a convolution behind the pooling, a plain one; every tensor is accounted for."""
    net = timm.create_model(model)
    encoder = create_encoder(f"slices/{model}", checkpoint=save(tmp_path / "file.safetensors", net))
    report = encoder.load_report
    assert report.coverage == 1
    assert not report.unexpected
    used = {key.removeprefix("net.") for key in (*report.loaded, *report.adapted)}
    assert used | set(report.dropped) == set(net.state_dict())
    assert report.dropped


def test_torchvision_files_fit_by_name(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    encoder = create_encoder("slices/resnet18", checkpoint=tmp_path / "resnet18.pth").eval()
    x = encoder.prepare(HU)
    body = torch.nn.Sequential(*list(theirs.children())[:-1], torch.nn.Flatten())
    with torch.inference_mode():
        expected = body(slices_of(x).expand(-1, 3, -1, -1))
        found = encoder.sequence(x).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_student_of_2d_voco(net, tmp_path):
    """One channel, the network as ``student.`` beside a teacher and projectors."""
    student = published("resnet10t", in_chans=1, num_classes=0)
    state = {f"student.{key}": value.clone() for key, value in student.state_dict().items()}
    state |= {f"teacher.{key}": value * 2 for key, value in student.state_dict().items()}
    state |= {"student_proj_head.layer1.0.weight": torch.zeros(4, 4)}
    torch.save({"state_dict": state}, tmp_path / "step30000.pth")
    encoder = create_encoder("slices/resnet10t", checkpoint=tmp_path / "step30000.pth").eval()
    x = encoder.prepare(HU)
    with torch.inference_mode():
        torch.testing.assert_close(slices_of(encoder.forward_features(x)), student.forward_features(slices_of(x)))
    assert encoder.load_report.which == "student"
    assert encoder.load_report.dropped["student_proj_head.layer1.0.weight"] == "projector"


@pytest.mark.parametrize(
    ("other", "why"), [("resnet14t", "tensors more|needed|shape"), ("resnet26t", "tensors more|needed|shape")]
)
def test_other_networks_are_refused(other, why, tmp_path):
    file = save(tmp_path / "other.safetensors", timm.create_model(other))
    with pytest.raises(InputError, match=rf"does not fit encoder slices/resnet10t: (?s:.)*({why})"):
        create_encoder("slices/resnet10t", checkpoint=file)


def test_stems_that_count_something_else_are_not_summed(file, tmp_path):
    state = timm.create_model("resnet10t").state_dict()
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, :3]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"layer1\.0\.conv2\.weight"):
        create_encoder("slices/resnet10t", checkpoint=tmp_path / "cut.safetensors")


def test_tags_are_timms_records():
    source = find_source("slices/resnet18", "tv_in1k")
    assert source.url == "https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors"
    assert (source.data, source.licence) == (("ImageNet-1k",), "bsd-3-clause")
    assert source.input_spec.rgb_mean == (0.485, 0.456, 0.406)
    tags = {s.tag for s in sources_of("slices/resnet18")}
    assert tags == {name.partition(".")[2] for name in timm.list_pretrained("resnet18.*")}
    assert find_source("slices/resnet18", "imagenet1k").tag == "a1_in1k"  # timm's default
    assert find_source("slices/vit_base_patch16_224", "augreg_in21k").data == ("ImageNet-22k",)
    assert find_source("slices/resnet18", "fb_swsl_ig1b_ft_in1k").data == ("Instagram-1B", "ImageNet-1k")
    # What the weights saw is kept although the network's default saw something else.
    assert find_source("slices/resnet18", "a3_in1k").input_spec.size == (32, 160, 160)
    with pytest.raises(InputError, match=r"did you mean slices/resnet18\.tv_in1k"):
        find_source("slices/resnet18", "tv_in1kk")


def test_tags_are_fetched_or_put_in_place_by_hand(net, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"fetch resnet10t\.c3_in1k\.safetensors from https://huggingface.co/timm/"):
        create_encoder("slices/resnet10t.c3_in1k")
    (tmp_path / "checkpoints").mkdir()
    save(tmp_path / "checkpoints" / "resnet10t.c3_in1k.safetensors", net)
    for arguments in ({}, {"pool": "flatten"}):
        encoder = create_encoder("slices/resnet10t.c3_in1k", **arguments)
        assert encoder.load_report.coverage == 1
        assert encoder.provenance[0]["source"] == "slices/resnet10t.c3_in1k"
        assert encoder.provenance[0]["data"] == ["ImageNet-1k"]
    assert create_encoder("slices/resnet10t", checkpoint="imagenet1k").load_report.coverage == 1


@pytest.mark.parametrize("model", ["lite0", *(pytest.param(m, marks=pytest.mark.slow) for m in ("b0", "b1", "lite3"))])
def test_names_of_efficientnet_pytorch_are_those_of_timms_blocks_in_their_order(model, tmp_path):
    """Its blocks in one row are ours in seven stages; values go where the project's own class has them."""
    project = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    theirs = project.EfficientNet.from_name(f"efficientnet-{model}").eval()
    for key, value in theirs.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    encoder = create_encoder(f"slices/tf_efficientnet_{model}", checkpoint=tmp_path / "file.pth")
    hu = torch.randint(-175, 250, (1, 1, 2, theirs.input_image_size, theirs.input_image_size)).float()
    x = encoder.prepare(hu)
    with torch.inference_mode():
        expected = theirs.extract_features(slices_of(x).expand(-1, 3, -1, -1))
        found = slices_of(encoder.forward_features(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert encoder.load_report.dropped == {"_fc.weight": "classifier", "_fc.bias": "classifier"}
