"""nnssl checkpoints: what their plans say, and that an encoder built from one takes the weights whole."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.nnssl import NnsslPlan, plan_of

CONFIGURATION = {
    "data_identifier": "nnsslPlans_onemmiso",
    "preprocessor_name": "DefaultPreprocessor",
    "spacing_style": "onemmiso",
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "spacing": [1, 1, 1],
    "patch_size": [160, 160, 160],
}
PLAN = {
    "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
    "pretrain_plan": {
        "dataset_name": "Dataset745_OpenMind",
        "plans_name": "nnsslPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"onemmiso": CONFIGURATION},
    },
    "pretrain_num_input_channels": 1,
    "recommended_downstream_patchsize": (160, 160, 160),
    "key_to_encoder": "encoder.stages",
    "key_to_stem": "encoder.stem",
    "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
    "key_to_lpe": None,
}
KWARGS = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 2, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.modules.activation.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def plan(**changes):
    """PLAN with values replaced; a key with double underscores goes down: ``pretrain_plan__transpose_forward``."""
    result = copy.deepcopy(PLAN)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        place[last] = value
    return result


def dynamic(class_name="ResidualEncoderUNet", **changes):
    return plan(architecture_plans={"arch_class_name": class_name, "arch_kwargs": KWARGS | changes})


def configured(**changes):
    return plan(pretrain_plan__configurations={"onemmiso": CONFIGURATION | changes})


def read(content):
    return plan_of({"network_weights": {}, "nnssl_adaptation_plan": content})


def checkpoint(encoder, content):
    """As the trainer saves it: each layer under two names, the encoder again in the decoder, and the decoder."""
    tensors = {}
    for key, value in encoder.state_dict().items():
        value = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(tensors)))
        layer, kind, parameter = key.rsplit(".", 2)
        position = {"conv": 0, "norm": 1}[kind]
        for prefix in ("encoder.", "decoder.encoder."):
            tensors[prefix + key] = value
            tensors[f"{prefix}{layer}.all_modules.{position}.{parameter}"] = value
    tensors |= {
        "decoder.stages.0.convs.0.conv.weight": torch.ones(2, 2, 3, 3, 3),
        "decoder.transpconvs.0.weight": torch.ones(2, 2, 2, 2, 2),
        "decoder.seg_layers.0.bias": torch.ones(1),
    }
    return {
        "network_weights": tensors,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [1.0]},
        "_best_ema": None,
        "current_epoch": 1000,
        "init_args": {"configuration_name": "onemmiso", "fold": 0},
        "trainer_name": "BaseMAETrainer_BS8",
        "nnssl_adaptation_plan": content,
    }


def test_the_usual_plan():
    found = read(PLAN)
    assert isinstance(found, NnsslPlan)
    assert (found.arch, found.arguments, found.encoder_prefix) == ("nnunet_resenc_l", {}, "encoder.")
    assert found.stem_keys == ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0")
    assert (found.channels, found.class_name, found.dataset) == (1, "ResEncL", "Dataset745_OpenMind")
    assert found.input_spec.axes == "SPL"
    assert found.input_spec.spacing_mm == (1.0, 1.0, 1.0)
    assert found.input_spec.size == (160, 160, 160)


@pytest.mark.parametrize(
    ("class_name", "arch", "depths"),
    [
        ("ResidualEncoderUNet", "nnunet_resenc_l", "n_blocks_per_stage"),
        ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "nnunet_plain", "n_conv_per_stage"),
    ],
)
def test_a_dynamic_plan_builds_the_encoder_that_its_file_fills(class_name, arch, depths, tmp_path):
    content = dynamic(class_name)
    found = read(content)
    assert found.arch == arch
    assert found.arguments == {
        "features_per_stage": (4, 8, 8),
        "strides": (1, (1, 2, 2), 2),
        "kernel_sizes": ((1, 3, 3), 3, 3),
        depths: (1, 2, 1),
    }
    donor = create_encoder(arch, **found.arguments)
    saved = checkpoint(donor, content)
    torch.save(saved, tmp_path / "checkpoint_final.pth")

    again = plan_of(tmp_path / "checkpoint_final.pth")
    assert again == found
    encoder = create_encoder(again.arch, input_spec=again.input_spec, **again.arguments)
    report = load_weights(encoder, tmp_path / "checkpoint_final.pth")
    assert report.coverage == 1.0
    assert not report.missing
    assert not report.adapted
    assert not report.unexpected
    assert set(report.dropped.values()) == {"decoder", "repeated name", "segmentation head"}
    for key, value in again.encoder_tensors(saved["network_weights"]).items():
        if "all_modules" not in key:
            assert torch.equal(encoder.state_dict()[key], value)


def test_a_file_that_keeps_shared_tensors_once(tmp_path):
    """Savers that drop repeated tensors may keep either name."""
    found = read(dynamic())
    donor = create_encoder(found.arch, **found.arguments)
    tensors = checkpoint(donor, PLAN)["network_weights"]
    torch.save({k: v for k, v in tensors.items() if "all_modules" in k}, tmp_path / "file.pth")
    encoder = create_encoder(found.arch, **found.arguments)
    assert load_weights(encoder, tmp_path / "file.pth").coverage == 1.0
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, tensors["encoder." + key])


def test_two_names_of_a_tensor_must_agree(tmp_path):
    found = read(dynamic())
    encoder = create_encoder(found.arch, **found.arguments)
    tensors = dict(checkpoint(encoder, PLAN)["network_weights"])
    name = next(key for key in tensors if key.startswith("encoder.") and key.endswith("all_modules.0.weight"))
    tensors[name] = tensors[name] + 1
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"two networks(.|\n)*all_modules\.0\.weight differ"):
        load_weights(encoder, tmp_path / "file.pth")


def test_plans_beside_the_file_and_none_at_all(tmp_path):
    torch.save({"network_weights": {"encoder.stem.convs.0.conv.weight": torch.ones(1)}}, tmp_path / "file.pth")
    assert plan_of(tmp_path / "file.pth") is None
    assert plan_of({"state_dict": {}}) is None
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(PLAN | {"trainer_name": "BaseMAETrainer"}))
    assert plan_of(tmp_path / "file.pth") == plan_of(tmp_path / "adaptation_plan.json") == read(PLAN)
    (tmp_path / "adaptation_plan.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        plan_of(tmp_path / "file.pth")


def test_transposed_plans_keep_the_meaning_of_the_axes():
    """Slices along the patient's width first: network axes L, S, P; sizes and spacings follow."""
    content = plan(
        pretrain_plan__transpose_forward=[2, 0, 1],
        pretrain_plan__configurations={
            "median": CONFIGURATION
            | {"spacing_style": "median", "spacing": [4.0, 1.0, 2.0], "patch_size": [16, 64, 96]}
        },
    )
    spec = read(content).input_spec
    assert spec.axes == "LSP"
    assert spec.spacing_mm == (1.0, 2.0, 4.0)  # S, P, L
    assert spec.size == (64, 96, 16)


def test_arrays_that_were_saved_as_tensors_are_read():
    found = read(configured(patch_size=torch.tensor([64, 96, 128]), spacing=torch.ones(3)))
    assert found.input_spec.size == (64, 96, 128)
    assert read(configured(spacing_style="noresample", spacing=None)).input_spec.spacing_mm is None


def prepared(content, hu):
    found = read(content)
    sizes = {"features_per_stage": (4,), "strides": (1,), "kernel_sizes": (3,), "n_blocks_per_stage": 1}
    encoder = create_encoder(found.arch, input_spec=found.input_spec, **sizes)
    return encoder.prepare(torch.tensor(hu).reshape(1, 1, 1, 2, -1)).flatten().numpy()


def test_normalisations_give_the_numbers_of_nnunet():
    hu = np.array([-1000.0, -200.0, 0.0, 55.0, 300.0, 2000.0], np.float32)
    np.testing.assert_allclose(prepared(configured(normalization_schemes=["NoNormalization"]), hu), hu, atol=1e-2)
    content = configured(normalization_schemes=["CTNormalization"])
    statistics = {"percentile_00_5": -160.0, "percentile_99_5": 240.0, "mean": 80.0, "std": 60.0, "median": 85.0}
    content["pretrain_plan"]["foreground_intensity_properties_per_channel"] = {"0": statistics}
    np.testing.assert_allclose(prepared(content, hu), (np.clip(hu, -160, 240) - 80) / 60, atol=1e-4)
    rescaled = prepared(configured(normalization_schemes=["RescaleTo01"]), hu)
    np.testing.assert_allclose(np.diff(rescaled), np.diff(hu) / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (plan(architecture_plans__arch_class_name="PrimusM"), r"PrimusM.*not available here.*ResEncL"),
        (plan(key_to_encoder="eva"), r"under 'eva'"),
        (dynamic(norm_op="torch.nn.modules.batchnorm.BatchNorm3d"), "norm_op .*BatchNorm3d"),
        (dynamic(nonlin_kwargs={"negative_slope": 0.2}), "slope"),
        (dynamic(norm_op_kwargs={"affine": False}), "without weights"),
        (dynamic(dropout_op="torch.nn.modules.dropout.Dropout3d"), "dropout_op"),
        (dynamic(features_per_stage=[4, 8, 10**9]), "between 1 and 4096; found 1000000000"),
        (dynamic(features_per_stage=[4, 8]), "2 for 3 stages"),
        (dynamic(n_stages=10**6), "1000000 stages"),
        (configured(normalization_schemes=["CTNormalization"]), "CTNormalization, without the statistics"),
        (configured(normalization_schemes=["RGBTo01"]), "RGBTo01"),
        (configured(spacing=[0, 1, 1]), "positive"),
        (configured(patch_size=[64, 64]), "three"),
        (plan(pretrain_plan__transpose_forward=[0, 0, 1]), "three axes"),
        (plan(pretrain_plan__configurations={"a": CONFIGURATION, "b": CONFIGURATION}), r"\['a', 'b'\]"),
        (plan(pretrain_plan__configurations=None), "not understood"),
        ({"architecture_plans": {}}, "not understood"),
        (plan(pretrain_plan__configurations={"a": torch.zeros(2000)}), "2000 values"),
    ],
)
def test_what_cannot_be_had_is_named(content, match):
    with pytest.raises(InputError, match=match):
        read(content)


def test_the_checkpoint_says_which_configuration_it_was():
    both = {"onemmiso": CONFIGURATION, "median": CONFIGURATION | {"spacing": [3, 1, 1], "spacing_style": "median"}}
    content = plan(pretrain_plan__configurations=both)
    assert read(content).input_spec.spacing_mm == (1.0, 1.0, 1.0)
    found = plan_of({"nnssl_adaptation_plan": content, "init_args": {"configuration_name": "median"}})
    assert found.input_spec.spacing_mm == (3.0, 1.0, 1.0)
