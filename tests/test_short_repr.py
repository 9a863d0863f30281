"""Objects with arrays print shapes, not numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from voco.data.cache import PreparedArray, PreparedVolume, write_entry
from voco.data.volume import Source, Volume
from voco.embed_command import Embedded
from voco.health.windows import EvalWindow
from voco.short_repr import short_repr


def test_a_volume_says_its_shape_and_spacing(tmp_path):
    array = np.zeros((41, 52, 512), np.int16)
    volume = Volume(array, (5.0, 0.796875, 0.796875), np.eye(4), Source("scan.nii.gz"))
    assert repr(volume) == "Volume(41 x 52 x 512 voxels of 5 x 0.7969 x 0.7969 mm, scan.nii.gz)" == str(volume)
    path = tmp_path / "a.b2nd"
    write_entry(path, array, (5, 1.5, 1.5), {})
    assert repr(PreparedVolume.open(path)) == f"PreparedVolume(41 x 52 x 512 voxels of 5 x 1.5 x 1.5 mm, {path})"
    assert repr(PreparedArray(array, (5, 1.5, 1.5), {})) == "PreparedArray(41 x 52 x 512 voxels of 5 x 1.5 x 1.5 mm)"


def test_arrays_tensors_and_long_lists_are_short_wherever_they_are():
    @short_repr
    @dataclass
    class Held:
        name: str
        one: np.ndarray
        two: dict
        three: tuple
        four: list

    held = Held("a", np.zeros((3, 4), np.float32), {"x": torch.zeros(2, 5)}, (np.zeros(2),), list(range(1000)))
    assert repr(held) == (
        "Held(name='a', one=float32 (3, 4), two={'x': float32 (2, 5)}, three=(float64 (2,),), "
        "four=[0, 1, 2, … 1000 in all])"
    ).replace("Held(", f"{Held.__name__}(")
    many = Embedded([f"case{i}" for i in range(500)], ["p"] * 500, ["a.nii"] * 500, np.zeros((500, 96)), [])
    assert "features=float64 (500, 96)" in repr(many) and len(repr(many)) < 250
    window = EvalWindow(0, 0, ("a", 1), np.zeros((64, 64, 64), np.int16), None, 0, 0.0, "")
    assert "hu=int16 (64, 64, 64), slabs=None" in repr(window) and len(repr(window)) < 200
