import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from voco.cli import main
from voco.data.cache import PreparedVolume


def voco(*args, code=""):
    """Run the command in a process of its own, as a user does."""
    run = f"import sys; from voco.cli import main; status = main(sys.argv[1:]); {code or 'pass'}; sys.exit(status)"
    return subprocess.run([sys.executable, "-c", run, *map(str, args)], capture_output=True, text=True, timeout=120)


def write_scan(path, seed=0, shape=(12, 20, 24)):
    array = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return array


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "MRN-4711 Jane Roe"
    for number in range(6):
        write_scan(root / f"s{number}.nii.gz", number)
    return root


@pytest.mark.parametrize("args", [["--help"], ["prepare", "--help"], ["phantom", "--help"], ["encoders", "--help"]])
def test_help_is_complete_and_imports_nothing_heavy(args):
    code = (
        "import sys; from voco.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'SimpleITK', 'blosc2', 'pandas', 'monai', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ["prepare", "phantom", "inspect", "encoders"] if args == ["--help"] else ["usage: voco " + args[0]]:
        assert word in done.stdout


def test_preparing_needs_no_torch(scans, tmp_path):
    done = voco("prepare", scans, tmp_path / "cache", "--workers", 1, code="assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_prepare_twice(scans, tmp_path, capsys):
    cache = tmp_path / "cache"
    (scans / "bad.nii.gz").write_bytes(b"")
    assert main(["prepare", str(scans), str(cache), "--spacing", "native", "2", "2", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "found 7 scans of 7 patients" in out
    assert "prepared 6, ready before 0, rejected 1" in out
    assert out.rstrip().endswith(str(cache))
    with open(cache / "rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["bad.nii.gz"] and rows[0]["reason"]
    assert "Jane" not in (cache / "rejected.csv").read_text()
    assert not (cache / "series.csv").exists()  # no DICOM here
    volumes = [PreparedVolume.open(path) for path in cache.glob("*.b2nd")]
    assert [volume.spacing_mm for volume in volumes] == [(3.0, 2.0, 2.0)] * 6
    assert all(volume.shape == (12, 10, 12) for volume in volumes)
    assert main(["prepare", str(scans), str(cache), "--spacing", "native", "2", "2", "--workers", "1"]) == 0
    assert "prepared 0, ready before 6, rejected 1" in capsys.readouterr().out


def test_too_many_rejected_scans_fail_after_the_work(scans, tmp_path, capsys):
    for number in range(3):
        (scans / f"bad{number}.nii").write_bytes(b"")
    args = ["prepare", str(scans), str(tmp_path / "cache"), "--workers", "1"]
    assert main(args) == 2
    assert "3 of 9 scans cannot be used" in capsys.readouterr().err
    assert len(list((tmp_path / "cache").glob("*.b2nd"))) == 6
    assert main([*args, "--max_rejected", "0.4"]) == 0


def test_shards_make_the_whole(scans, tmp_path, capsys):
    cache = tmp_path / "cache"
    for part, expected in enumerate([2, 2, 2]):
        assert main(["prepare", str(scans), str(cache), "--shard", f"{part}/3", "--workers", "1"]) == 0
        assert f"this part takes {expected}" in capsys.readouterr().out
    assert sorted(path.name for path in cache.glob("rejected*")) == [f"rejected.{i}of3.csv" for i in range(3)]
    assert main(["prepare", str(scans), str(cache), "--workers", "1"]) == 0
    assert "prepared 0, ready before 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prepare", "{tmp}/gone", "{tmp}/c"], "does not exist"),
        (["prepare", "{scans}", "{tmp}/c", "--spacing", "1", "2"], "2 values"),
        (["prepare", "{scans}", "{tmp}/c", "--spacing", "thick"], "'thick'"),
        (["prepare", "{scans}", "{tmp}/c", "--select", "best", "--workers", "1"], "'best'"),
        (["prepare", "{scans}", "{tmp}/c", "--workers", "0"], "--workers"),
        (["prepare", "{scans}", "{tmp}/c", "--max_rejected", "20"], "--max_rejected"),
        (["prepare", "{scans}", "{scans}/s0.nii.gz"], "cache folder"),
        (["inspect", "{tmp}/gone"], "does not exist"),
        (["inspect", "{tmp}"], "cannot be used|no file"),
        (["encoders", "nothing*"], "no encoder matches"),
        (["phantom", "{tmp}/p", "--cases", "0"], "--cases"),
    ],
)
def test_bad_input_is_one_message_without_traceback(args, message, scans, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    args = [a.format(tmp=tmp_path / "empty" if args[0] == "inspect" else tmp_path, scans=scans) for a in args]
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    assert any(part in err for part in message.split("|"))


@pytest.mark.parametrize(
    "args", [[], ["prepare"], ["prepare", "a", "b", "--shard", "3/3"], ["paint"], ["prepare", "a", "b", "--crop"]]
)
def test_wrong_usage(args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2


def test_inspect_scans_and_caches(scans, tmp_path, capsys):
    cache = tmp_path / "cache"
    main(["prepare", str(scans), str(cache), "--spacing", "native", "--workers", "1"])
    capsys.readouterr()

    def inspect(path):
        assert main(["inspect", str(path)]) == 0
        return capsys.readouterr().out

    assert "12 x 20 x 24" in inspect(scans / "s0.nii.gz")
    assert "3 x 1 x 1 mm" in inspect(scans / "s0.nii.gz")
    assert "scans     6" in inspect(scans)
    out = inspect(cache)
    assert "scans    6" in out and "6 at 3 x 1 x 1 mm" in out
    entry = next(cache.glob("*.b2nd"))
    out = inspect(entry)
    assert "12 x 20 x 24" in out and "all checksums right" in out
    data = bytearray(entry.read_bytes())
    data[2000] ^= 255
    entry.write_bytes(bytes(data))
    assert main(["inspect", str(entry)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_inspect_shows_no_identifiers(tmp_path, capsys):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).parent / "data" / "dicom_maker.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    maker.series(tmp_path / "in" / "a", maker.anatomy(), study="1", series="x")
    maker.series(tmp_path / "in" / "b", maker.anatomy(), study="2", series="y")
    main(["prepare", str(tmp_path / "in"), str(tmp_path / "cache"), "--workers", "1"])
    for path in (tmp_path / "in", tmp_path / "in" / "a", *(tmp_path / "cache").glob("*.b2nd")):
        assert main(["inspect", str(path)]) == 0
    shown = "".join(capsys.readouterr())
    assert "DICOM series" in shown and "kept: the thinnest" in shown
    for secret in (*maker.SECRET.values(), "Roe", maker.uid("1"), maker.uid("1", "x"), "p-"):
        assert secret not in shown
    assert (tmp_path / "cache" / "series.csv").is_file()


def test_encoders_and_inspect_an_encoder(tmp_path, capsys):
    from voco import create_encoder, list_encoders
    from voco.weights.export import save_encoder
    from voco.weights.sources import list_weights

    assert main(["encoders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    architectures, weights = lines[1 : lines.index("")], lines[lines.index("") + 2 :]
    assert [line.split()[0] for line in architectures] == [*list_encoders(), "slices/NAME"]
    assert sorted(line.split()[0] for line in weights) == list_weights()
    assert main(["encoders", "*.kinetics400"]) == 0
    assert "r3d_18-b3b3357e.pth" in capsys.readouterr().out
    assert main(["encoders", "swin_b"]) == 0  # by its alias
    assert capsys.readouterr().out.splitlines()[1].startswith("swinunetr_b")
    assert main(["encoders", "slices/resnet18.tv*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "/resnet" in line] == [
        "slices/resnet18",
        "slices/resnet18.tv_in1k",
    ]
    assert main(["encoders", "slices/nothing*"]) == 2
    assert "no encoder matches" in capsys.readouterr().err

    encoder = create_encoder("cnn3d_s", window=(-321, 654))
    save_encoder(encoder, tmp_path / "run" / "encoder", {"method": "voco3d", "steps": 17})
    (tmp_path / "run" / "run.json").write_text(json.dumps({"state": "finished", "wall_seconds": 12.5, "sessions": []}))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 16, "loss": 0.5}\n{"step": 17, "loss": 0.25}\n')
    (tmp_path / "run" / "checkpoints" / "step-00000017").mkdir(parents=True)
    count = sum(value.numel() for value in encoder.state_dict().values())
    for path in (tmp_path / "run", tmp_path / "run" / "encoder", tmp_path / "run" / "encoder" / "model.safetensors"):
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert "cnn3d_s" in out and "[-321, 654]" in out
        assert f"{count / 1e6:.2f} M" in out and "17" in out
    assert main(["inspect", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "finished" in out and "step 17, loss 0.25" in out and "newest step-00000017" in out


def test_phantom_then_prepare(tmp_path, capsys):
    out = tmp_path / "phantoms"
    args = ["phantom", str(out), "--cases", "1", "--seed", "3", "--format", "nifti", "--spacing", "8", "8", "8"]
    assert main([*args, "--workers", "1"]) == 0
    assert "wrote 1 synthetic patients" in capsys.readouterr().out
    assert main(["prepare", str(out), str(tmp_path / "cache"), "--spacing", "native", "--workers", "1"]) == 0
    assert "rejected 0" in capsys.readouterr().out


def test_inspect_says_why_scans_are_rejected(scans, tmp_path, capsys):
    (tmp_path / "list.csv").write_text(f"path\n{scans}/s0.nii.gz\n{scans}/gone.nii.gz\n")
    assert main(["inspect", str(tmp_path / "list.csv")]) == 0
    out = capsys.readouterr().out
    assert "gone.nii.gz: no such file or folder" in out and "1 nii.gz" in out
