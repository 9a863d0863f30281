"""A file says what it is before anything is built, and what the user names becomes a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from voco.cli import main
from voco.encoders import create_encoder, load_encoder
from voco.encoders.base import ENCODERS
from voco.errors import InputError
from voco.weights import download, sources
from voco.weights.families import families
from voco.weights.load import load_weights
from voco.weights.recognise import recognise
from voco.weights.resolve import resolve
from voco.weights.sources import all_sources, list_weights, usual_input


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "downloaded.pth"
    torch.save(video.mc3_18(weights=None).state_dict(), path)
    return path


def test_file_of_another_name_is_recognised_and_fed_as_its_format_is(torchvision_file):
    [guess] = recognise(torchvision_file)
    assert guess.arch == "mc3_18"
    assert guess.source is None  # a name of the user's own says nothing about who trained it
    assert guess.report.coverage == 1.0
    encoder = load_encoder(torchvision_file)
    assert encoder.name == "mc3_18" and not encoder.training
    assert encoder.provenance == [{"source": "file", "file": "downloaded.pth"}]
    assert encoder.input_spec == all_sources()["mc3_18.kinetics400"].input_spec


def test_published_name_brings_its_record_but_not_its_digest(torchvision_file, tmp_path):
    path = tmp_path / all_sources()["mc3_18.kinetics400"].file
    path.write_bytes(torchvision_file.read_bytes())
    assert recognise(path)[0].source.tag == "kinetics400"
    [entry] = create_encoder("mc3_18", checkpoint=path).provenance
    assert entry["source"] == "mc3_18.kinetics400" and entry["data"] == ["Kinetics-400"]
    assert entry["file_is_the_published_one"] is False


def test_renamed_published_file_is_known_by_its_digest(torchvision_file, tmp_path, monkeypatch):
    digest = hashlib.sha256(torchvision_file.read_bytes()).hexdigest()
    record = replace(all_sources()["mc3_18.kinetics400"], sha256=digest[:8])
    monkeypatch.setattr(sources, "all_sources", lambda: {record.name: record})
    [entry] = create_encoder("mc3_18", checkpoint=torchvision_file).provenance
    assert entry["source"] == "mc3_18.kinetics400" and entry["file_is_the_published_one"] is True


def test_details_of_a_published_network_need_the_published_file(tmp_path, monkeypatch):
    """Networks of MONAI 1.3 and 1.6 have the same tensors; a digest tells which one a file was trained in."""
    encoder = create_encoder("swin_t")
    torch.save(encoder.state_dict(), tmp_path / "VoCo_B_SSL_head.pt")
    digest = hashlib.md5((tmp_path / "VoCo_B_SSL_head.pt").read_bytes()).hexdigest()
    published = replace(all_sources()["swinunetr_b.voco_ssl"], arch="swinunetr_t")
    for md5, arguments in ((digest, {"merging": "repeated"}), ("0" * 32, {}), ("", {"merging": "repeated"})):
        record = replace(published, md5=md5)
        monkeypatch.setattr(sources, "all_sources", lambda record=record: {record.name: record})
        for name in ("swin_t", "swin_t.voco_ssl"):
            assert create_encoder(name, checkpoint=tmp_path / "VoCo_B_SSL_head.pt").arguments == arguments


def test_wrong_architecture_is_told_which_would_be_right(torchvision_file):
    encoder = create_encoder("cnn3d_s")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"it looks like mc3_18 \(torchvision\)(.|\n)*nothing was loaded"):
        load_weights(encoder, torchvision_file)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])


def test_unknown_network_shows_what_it_holds(tmp_path, capsys):
    save_file({f"blocks.{i}.thing.weight": torch.ones(2, 3) for i in range(30)}, tmp_path / "x.safetensors")
    assert recognise(tmp_path / "x.safetensors") == []
    with pytest.raises(InputError, match=r"fits no encoder.*30 tensors: blocks\.0\.thing\.weight \(2, 3\)") as error:
        load_encoder(tmp_path / "x.safetensors")
    assert "nearest" not in str(error.value)
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    assert "no encoder that is known here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    (
        ("renamed", r"mc3_18 \(torchvision\), but the stem is missing: stem\.0\.weight"),
        ("transposed", r"mc3_18 .*1 tensor of another shape or type:\s+layer2\.0\.conv1\.0\.weight \(64, 128, 1"),
        ("statistic", r"mc3_18 .*running statistics are missing: stem\.1\.running_var"),
    ),
)
def test_file_that_nearly_fits_is_told_what_is_wrong_with_it(damage, said, torchvision_file, tmp_path, capsys):
    state = dict(torch.load(torchvision_file, weights_only=True))
    if damage == "renamed":
        state["stem.0.weights"] = state.pop("stem.0.weight")
    elif damage == "transposed":
        state["layer2.0.conv1.0.weight"] = state["layer2.0.conv1.0.weight"].transpose(0, 1).contiguous()
    else:
        state["stem.1.variance"] = state.pop("stem.1.running_var")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"fits no encoder.*nearest is " + said):
        load_encoder(tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    assert re.search("nearest +" + said, capsys.readouterr().out)


def test_inspect_says_what_a_file_is(torchvision_file, tmp_path, capsys):
    path = tmp_path / all_sources()["mc3_18.kinetics400"].file
    path.write_bytes(torchvision_file.read_bytes())
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    for words in (
        'voco.create_encoder("mc3_18.kinetics400"',
        "100.0% of the parameters",
        "1 (sum of 3 input channels)",
        "2 (classifier)",
        "it is NOT the published file, which has sha256 a90a0ba3",
        "Kinetics-400",
        "[-100, 900]",
    ):
        assert words in out


def test_tags_are_fetched_and_hub_ids_looked_up(torchvision_file, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda source: asked.append(source.name) or torchvision_file)
    monkeypatch.setattr(download, "fetch_hub_file", lambda *a: asked.append(a) or torchvision_file)
    monkeypatch.chdir(tmp_path)
    for keywords in ({}, {"checkpoint": "kinetics400"}, {"checkpoint": "mc3_18.kinetics400"}):
        name = "mc3_18" if keywords else "mc3_18.kinetics400"
        assert create_encoder(name, **keywords).provenance[0]["source"] == "mc3_18.kinetics400"
    assert asked == ["mc3_18.kinetics400"] * 3
    resolve("mc3_18", "", "someone/some-net")
    resolve("mc3_18", "", "someone/some-net/folder/net.pth")
    assert asked[3:] == [("someone/some-net", None), ("someone/some-net", "folder/net.pth")]
    with pytest.raises(InputError, match="two different weights"):
        resolve("r2plus1d_34", "ig65m_clip8", "ig65m_clip32")
    with pytest.raises(InputError, match=r"no weights at kinetics: .*tags kinetics400"):
        create_encoder("mc3_18", checkpoint="kinetics")
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match=r"no weights at runs/x/net"):
        resolve("mc3_18", "", "runs/x/net.pth")
    with pytest.raises(InputError, match=r"no weights at .*gone\.pth"):
        create_encoder("mc3_18", checkpoint=tmp_path / "gone.pth")


def test_every_record_is_complete():
    """What a user needs to decide, and what the code needs to feed a network rightly."""
    for source in all_sources().values():
        arch = ENCODERS[source.arch]
        assert (
            source.url.startswith("the Python package" if source.packages else "https://")
            and source.licence
            and source.citation
        ), source.name
        assert source.file or not source.download, source.name  # some lists of models do not tell the file's name
        assert source.data, source.name
        arch.check_arguments(source.arch, dict(source.arguments))
        spec = source.input_spec
        assert all(size >= low for size, low in zip(spec.size, spec.min_size)), source.name
        assert not (set(source.sha256) | set(source.md5)) - set("0123456789abcdef")
        assert len(source.sha256) in (0, *range(8, 65)) and len(source.md5) in (0, 32), source.name
    ke_et_al = ("slow_r50", "slowfast_r50", "r2plus1d_r50", "csn_r101", "mvit_b_32x3", "swin3d_t", "penet")
    assert all(list_weights(f"{arch}.kinetics*") for arch in ke_et_al)
    assert set(list_weights("swinunetr_[blh].*")) >= {f"swinunetr_{s}.voco_ssl" for s in "blh"}


def test_the_page_on_weights_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    named = {
        word for row in re.findall(r"^\|[^|]+\|([^|]+)\|[^|]+\|$", page, re.M) for word in re.findall("`([^`]+)`", row)
    }
    assert named == {fmt.name for family in families().values() for fmt in family.formats}


def test_projects_that_feed_one_network_differently_are_kept_apart(monkeypatch):
    torchvision, kylemin = usual_input("s3d", "torchvision"), usual_input("s3d", "kylemin S3D")
    assert torchvision.mean != kylemin.mean
    assert (kylemin.mean, kylemin.std) == ((0.5,), (0.5,))  # [-1, 1]
    assert usual_input("s3d", "nobody") is None
    monkeypatch.setattr(sources, "all_sources", dict)
    assert usual_input("s3d", "torchvision") is None
