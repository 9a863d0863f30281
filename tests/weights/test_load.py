"""Files as people have them: every published wrapper loads whole, every damaged or foreign file loads nothing."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights import download, sources
from voco.weights.adapt import adapt_input_channels
from voco.weights.load import load_weights
from voco.weights.sources import all_sources, list_weights


def random_state(encoder, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) * 0.1 if value.is_floating_point() else value.clone()
        for key, value in encoder.state_dict().items()
    }


@pytest.fixture(scope="module")
def swin():
    return create_encoder("swin_t")


@pytest.fixture(scope="module")
def ssl_head(swin):
    """As a VoCo SSL head is described: a flat dict of 145 tensors."""
    return random_state(swin)


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    return create_encoder("cnn3d_s")


def assert_holds(encoder, state):
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key]), key


def assert_refused(encoder, path, match, **keywords):
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=match) as caught:
        load_weights(encoder, path, **keywords)
    assert_holds(encoder, before)
    assert encoder.load_report is None
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


PROJECTOR = {f"{side}.layer{i}.0.weight": torch.ones(2, 2) for side in ("student", "teacher") for i in (1, 2, 3)}
SWIN_WRAPPERS = {
    "ssl_head": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "network_weights": lambda s: {"network_weights": s, "optimizer_state": {"lr": 1.0}},
    "net": lambda s: {"net": s},
    "nested": lambda s: {"model": {"state_dict": prefixed(s, "module._orig_mod.backbone.")}},
    "model_prefix": lambda s: prefixed(s, "model.module."),
    "ema_wrapper": lambda s: {"ema": s},
    "other_ema_wrapper": lambda s: {"ema_model": s},
    "in_house_v2": lambda s: {
        "global_step": 7,
        "state_dict": prefixed(prefixed(s, "backbone.") | PROJECTOR, "module."),
    },
    "own_method": lambda s: prefixed(s, "encoder.") | PROJECTOR,
    "older_monai": lambda s: {k.replace("swinViT", "swin_vit").replace("linear", "fc"): v for k, v in s.items()},
    "torch_compile": lambda s: prefixed(s, "_orig_mod."),
}


@pytest.mark.parametrize("wrapper", SWIN_WRAPPERS)
def test_voco_files_load_whole(wrapper, swin, ssl_head, tmp_path):
    torch.save(SWIN_WRAPPERS[wrapper](ssl_head), tmp_path / "file.pt")
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter.zero_()
    report = load_weights(swin, tmp_path / "file.pt")
    assert len(report.loaded) == 145
    assert report.coverage == 1.0
    assert not report.missing
    assert not report.adapted
    assert not report.unexpected
    assert len(report.dropped) == (6 if wrapper in ("in_house_v2", "own_method") else 0)
    assert "145 of 145 tensors, 100.0% of the parameters" in str(report)
    assert_holds(swin, ssl_head)


def test_full_swinunetr_of_monai_loads_its_encoder(swin, tmp_path):
    """VoComni files: the 145 encoder tensors of 167; decoders and output are named as not used."""
    from monai.networks.nets import SwinUNETR

    full = SwinUNETR(in_channels=1, out_channels=21, feature_size=12, use_v2=True).state_dict()
    assert len(full) == 167
    torch.save({"state_dict": full}, tmp_path / "VoComni.pt")
    report = load_weights(swin, tmp_path / "VoComni.pt")
    assert len(report.loaded) == 145
    assert len(report.dropped) == 22
    assert {key.split(".")[0].rstrip("12345") for key in report.dropped} == {"decoder", "out"}
    assert_holds(swin, full)
    saved = json.loads(json.dumps(report.to_dict()))
    assert saved["counts"] == {"loaded": 145, "adapted": 0, "missing": 0, "unexpected": 0, "dropped": 22}
    assert saved["wrapper"] == ["state_dict"]


def test_student_and_teacher_are_a_choice(cnn, tmp_path):
    student, teacher = random_state(cnn, 1), random_state(cnn, 2)
    path = tmp_path / "v1.pt"
    for content in (
        {"state_dict": prefixed(student, "student.") | prefixed(teacher, "teacher.")},
        {"student": student, "teacher": prefixed(teacher, "module.")},
    ):
        torch.save(content, path)
        report = load_weights(cnn, path)
        assert report.which == "student"
        assert not report.unexpected
        assert set(report.dropped.values()) <= {"teacher"}
        assert_holds(cnn, student)
        report = load_weights(cnn, path, which="teacher")
        assert report.which == "teacher"
        assert "from its teacher" in str(report)
        assert_holds(cnn, teacher)
    cnn.load_report = None
    assert_refused(cnn, path, "holds no ema encoder", which="ema")
    assert_refused(cnn, path, "holds no best encoder; it holds student, teacher", which="best")


def test_a_teacher_may_be_deeper_but_not_the_student(cnn, tmp_path):
    state = random_state(cnn)
    for deeper in ("teacher.", "student."):
        torch.save(prefixed(state, "student.") | {f"{deeper}stages.7.conv1.weight": torch.ones(2)}, tmp_path / "x.pt")
        if deeper == "teacher.":
            load_weights(cnn, tmp_path / "x.pt")
            cnn.load_report = None
        else:
            assert_refused(cnn, tmp_path / "x.pt", r"student\.stages\.7")


def test_two_networks_of_the_same_names_are_not_mixed(cnn, tmp_path):
    """Copies are one network; of two that differ the whole one is taken, or the one asked for, and it is said."""
    first, second = random_state(cnn, 1), random_state(cnn, 2)
    torch.save(prefixed(first, "encoder.") | prefixed(first, "model."), tmp_path / "copies.pt")
    report = load_weights(cnn, tmp_path / "copies.pt")
    assert_holds(cnn, first)
    assert (report.which, report.others) == (None, ())
    assert set(report.dropped.values()) == {"repeated name"}
    path = tmp_path / "two.pt"
    torch.save(prefixed(first, "encoder.") | prefixed(second, "model."), path)
    for which, state in (("auto", first), ("model", second), ("encoder", first)):
        report = load_weights(cnn, path, which=which)
        assert_holds(cnn, state)
        assert {report.which, *report.others} == {"encoder", "model"}
        assert f"(from its {report.which}; which= takes {report.others[0]} instead)" in str(report)
    del first["stem.0.weight"]  # the other network would fill the gap
    torch.save(prefixed(first, "encoder.") | prefixed(second, "model."), path)
    assert load_weights(cnn, path).which == "model"
    assert_holds(cnn, second)
    cnn.load_report = None
    assert_refused(cnn, path, r"the stem is missing: stem\.0\.weight", which="encoder")


@pytest.mark.parametrize("kind", ["safetensors", "unnamed_safetensors", "legacy", "half"])
def test_formats(kind, cnn, tmp_path):
    state = random_state(cnn)
    if kind == "legacy":
        path = tmp_path / "file.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "half":
        path = tmp_path / "file.pth"
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        torch.save(state, path)
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    else:
        path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.bin")
        save_file(state, path)
    load_weights(cnn, path)
    assert_holds(cnn, state)


class Planted:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_never_runs(kind, cnn, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "file.pth"
    content = {"state_dict": random_state(cnn), "optimizer": Planted(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    match = r"(posix\.system|nt\.system)" if kind != "pickle" else "."
    message = assert_refused(cnn, path, match)
    if kind != "pickle":
        assert "would run code" in message
    assert not marker.exists()


def damaged(kind, state, path):
    """Write one broken version of a good state dict."""
    state = dict(state)
    if kind == "renamed_stem":
        state["entry.0.weight"] = state.pop("stem.0.weight")
    elif kind == "transposed":
        state["stages.1.conv1.weight"] = state["stages.1.conv1.weight"].transpose(0, 1)
    elif kind == "nan":
        state["stages.2.norm1.weight"][3] = float("nan")
    elif kind == "half_missing":
        state = {k: v for k, v in state.items() if not k.startswith("stages.3")}
    elif kind == "deeper":
        state["stages.4.conv1.weight"] = torch.ones(2, 2)
    elif kind == "integers":
        state["stages.1.conv1.weight"] = state["stages.1.conv1.weight"].long()
    elif kind == "no_tensors":
        state = {"epoch": 3, "note": "x"}
    torch.save(state, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "web_page":
        path.write_text("<!DOCTYPE html><html>Sign in</html>")
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "empty":
        path.write_bytes(b"")


DAMAGE = {
    "renamed_stem": r"stem is missing: stem\.0\.weight(.|\n)*entry\.0\.weight",
    "transposed": r"another shape(.|\n)*\(12, 24, 3, 3, 3\) float32, wanted \(24, 12, 3, 3, 3\)",
    "nan": r"not finite.*stages\.2\.norm1\.weight",
    # stages.3 has 378,432 of the 505,116 parameters.
    "half_missing": r"fills 25\.0% of the parameters, 100% are needed",
    "deeper": r"1 tensor more, inside what the encoder also has.*stages\.4\.conv1\.weight",
    "integers": r"int64, wanted",
    "no_tensors": r"holds no weights.*epoch",
    "cut": r"its end is missing",
    "web_page": r"web page",
    "lfs": r"LFS pointer",
    "empty": r"not a weights file",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_fit_loads_nothing(kind, cnn, tmp_path):
    damaged(kind, random_state(cnn), tmp_path / "file.pth")
    assert_refused(cnn, tmp_path / "file.pth", DAMAGE[kind])


def test_cut_safetensors(cnn, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(random_state(cnn), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(cnn, path, "damaged")


def test_another_family_shows_ten_keys_of_both_sides(swin, ssl_head, cnn, tmp_path):
    torch.save(ssl_head, tmp_path / "voco.pt")
    message = assert_refused(cnn, tmp_path / "voco.pt", "no tensor has a name")
    wants, has = message.splitlines()[1:3]
    assert wants.count("(") == 10 + 1  # ten shapes, and "(n in all)"
    assert has.count("(") == 10 + 1
    assert "encoder1.layer.conv1.conv.weight (12, 1, 3, 3, 3)" in has


def test_one_missing_parameter_of_a_voco_file_is_an_error(ssl_head, tmp_path):
    encoder = create_encoder("swin_t")
    state = dict(ssl_head)
    del state["swinViT.layers1.0.blocks.0.norm1.bias"]
    torch.save(state, tmp_path / "file.pt")
    assert_refused(encoder, tmp_path / "file.pt", "100% are needed")


def test_swinunetr_without_v2_is_named_as_misfit(tmp_path):
    from monai.networks.nets import SwinUNETR

    encoder = create_encoder("swin_t")
    old = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, use_v2=False).state_dict()
    torch.save(old, tmp_path / "file.pt")
    message = assert_refused(encoder, tmp_path / "file.pt", "are needed")
    assert "swinViT.layers1c.0.layer.conv1.conv.weight" in message


def test_foreign_index_tables_are_not_taken(ssl_head, tmp_path):
    encoder = create_encoder("swin_t")
    key = "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    ours = encoder.state_dict()[key].clone()
    torch.save({**ssl_head, key: torch.full_like(ours, 10**6)}, tmp_path / "file.pt")
    report = load_weights(encoder, tmp_path / "file.pt")
    assert report.adapted == {key: "index recomputed"}
    assert torch.equal(encoder.state_dict()[key], ours)


def test_three_stem_tensors_follow_the_windows(ssl_head, tmp_path):
    torch.save(ssl_head, tmp_path / "file.pt")
    windows = [(-175, 250), (-1000, 500)]
    encoder = create_encoder("swin_t", checkpoint=tmp_path / "file.pt", window=windows)
    assert set(encoder.load_report.adapted) == set(encoder.stem_keys)
    assert len(encoder.stem_keys) == 3
    for key in encoder.stem_keys:
        torch.testing.assert_close(encoder.state_dict()[key].sum(1, keepdim=True), ssl_head[key])


def test_identical_windows_give_the_one_channel_features(cnn, tmp_path):
    torch.save(cnn.state_dict(), tmp_path / "file.pt")
    twin = create_encoder("cnn3d_s", checkpoint=tmp_path / "file.pt", window=[(-1000, 500)] * 3).eval()
    hu = torch.randint(-1000, 500, (2, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    torch.testing.assert_close(twin(hu), cnn.eval()(hu), rtol=1e-4, atol=1e-5)


def test_summed_kernel_equals_the_repeated_volume():
    weight = torch.randn(4, 3, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gray = torch.randn(1, 1, 6, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.nn.functional.conv3d(gray.repeat(1, 3, 1, 1, 1), weight, padding=(1, 2, 2))
    one, rule = adapt_input_channels(weight, 1)
    assert rule == "sum of 3 input channels"
    torch.testing.assert_close(torch.nn.functional.conv3d(gray, one, padding=(1, 2, 2)), expected)
    two, _ = adapt_input_channels(weight, 2)
    torch.testing.assert_close(torch.nn.functional.conv3d(gray.repeat(1, 2, 1, 1, 1), two, padding=(1, 2, 2)), expected)
    assert adapt_input_channels(weight, 3)[0] is weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_summed_in_full_precision(dtype, cnn, tmp_path):
    """As the encoder computes after the conversion; a sum in half precision would be off by 0.4 %."""
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in cnn.state_dict().items()}
    state["stem.0.weight"] = torch.randn(12, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.save(state, tmp_path / "half.pt")
    load_weights(cnn, tmp_path / "half.pt")
    found = cnn.state_dict()["stem.0.weight"]
    torch.testing.assert_close(
        found, state["stem.0.weight"].double().sum(1, keepdim=True).float(), rtol=1e-5, atol=1e-6
    )


def test_tags_bring_spec_and_history(ssl_head, tmp_path, monkeypatch):
    assert list_weights("*.voco_ssl") == ["swinunetr_b.voco_ssl", "swinunetr_h.voco_ssl", "swinunetr_l.voco_ssl"]
    small = replace(all_sources()["swinunetr_b.voco_ssl"], arch="swinunetr_t")
    monkeypatch.setattr(sources, "all_sources", lambda: {small.name: small})
    torch.save(ssl_head, tmp_path / "file.pt")
    encoder = create_encoder("swin_t.voco_ssl", checkpoint=tmp_path / "file.pt", window=(-1000, 500))
    assert encoder.input_spec.windows == ((-1000.0, 500.0),)
    assert encoder.input_spec.axes == "RAS"
    [entry] = encoder.provenance
    assert entry["source"] == "swinunetr_t.voco_ssl"
    assert entry["licence"] == "apache-2.0"
    assert entry["file_is_the_published_one"] is False
    monkeypatch.setattr(download, "fetch", lambda source: tmp_path / "file.pt")
    assert create_encoder("swin_t", checkpoint="voco_ssl").provenance == encoder.provenance


def test_paths_that_hold_nothing(cnn, tmp_path):
    assert_refused(cnn, tmp_path / "none.pt", "no weights at")
    assert_refused(cnn, tmp_path, "not an encoder folder")
