"""Presets and the refusal of options that contradict each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.methods import method_class
from voco.methods.options import PRESETS, VoCoOptions, resolve


def test_presets():
    assert VoCoOptions() == resolve().options and resolve().geometry == Geometry() and resolve().region == "window"
    v1, v2 = resolve("v1"), resolve("v2")
    assert v1.region == "whole" and v1.geometry.window == (96, 384, 384) and v1.geometry.network_shape == (64, 64, 64)
    assert (v1.options.teacher, v1.options.intra, v1.options.inter_weight) == ("model", "symmetric", 0)
    assert (v1.options.projector_dim, v1.options.negative, v1.augmentation.shift_prob) == (2048, "square", 0.1)
    assert (v2.options.norm_scope, v2.options.inter_scope, v2.options.feature_dropout) == ("local", "local", "crop")
    assert v2.geometry == Geometry() and v2.augmentation == Augmentation(0.2, 0.2, 0.5, 0.1)
    assert resolve().augmentation == Augmentation(flip_prob=0, turn_prob=0, shift_prob=1, shift_range=0.1)
    assert resolve("v2", crop=32, negative="square").geometry.window == (32, 96, 96)
    assert method_class("voco3d").__name__ == "VoCo3D" and set(PRESETS) == {"default", "v1", "v2"}
    for wrong in ({"preset": "v3"}, {"colour": 1}):
        with pytest.raises(InputError, match="known"):
            resolve(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"teacher": "none"},
        {"teacher": "none", "intra": "detached"},
        {"negative": "abs"},
        {"reg_power": 3},
        {"dropout_rate": 1.0},
        {"teacher_momentum": 1.5},
        {"inter_weight": -1.0},
    ],
)
def test_contradicting_options_are_refused(wrong):
    with pytest.raises(InputError):
        VoCoOptions(**wrong)


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match="voco3d"):
        method_class("voco3")


def test_settings_do_not_load_torch():
    code = "import sys, voco.methods, voco.methods.options, voco.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
