"""Adaptation plans of nnssl: what a checkpoint says about its network and its data, as values of ours.

Read as data only. The plan lies in the checkpoint under ``nnssl_adaptation_plan`` or beside it as
``adaptation_plan.json`` (public code: MIC-DKFZ/nnssl; its plans follow nnU-Net's).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from voco.encoders import nnunet
from voco.encoders.base import ENCODERS
from voco.encoders.spec import CANONICAL_AXES, InputSpec
from voco.errors import InputError

PLAN_KEY = "nnssl_adaptation_plan"
PLAN_FILE = "adaptation_plan.json"
NNSSL_WRAPPER = "network_weights"  # under which nnssl and nnU-Net keep their tensors

_ARCHS = {
    "ResEncL": "nnunet_resenc_l",
    "NoSkipResEncL": "nnunet_resenc_l",  # its decoder does without skips; the encoder is the same
    "ResidualEncoderUNet": "nnunet_resenc_l",
    "PlainConvUNet": "nnunet_plain",
}
_PRESETS = ("ResEncL", "NoSkipResEncL")
# Lists per stage, and the number that a plan is believed to mean at most: it may come from anywhere.
_MOST = {"features_per_stage": 4096, "strides": 16, "kernel_sizes": 15, "n_blocks_per_stage": 64}
_MOST_STAGES = 12
_WHOLE_RANGE = nnunet.WHOLE_RANGE[1] - nnunet.WHOLE_RANGE[0]


@dataclass(frozen=True)
class NnsslPlan:
    """One plan.

    Attributes:
        arch: registered encoder; ``arguments`` are the keywords that build it, where they are not its defaults.
        input_spec: axes, spacing, patch and intensities of the pretraining.
        encoder_prefix: what the checkpoint puts before the encoder's own tensor names, ``"encoder."``.
        stem_keys: the checkpoint's names of the first convolution (several for one tensor).
        channels: input channels of the pretraining.
        class_name: the network as nnssl calls it.
        dataset: name of the pretraining data set, as its authors gave it.
    """

    arch: str
    arguments: dict = field(default_factory=dict)
    input_spec: InputSpec = nnunet.RESENC_SPEC
    encoder_prefix: str = "encoder."
    stem_keys: tuple[str, ...] = ()
    channels: int = 1
    class_name: str = ""
    dataset: str = ""

    def encoder_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's part of a checkpoint, without the prefix."""
        names = {key: key.removeprefix(self.encoder_prefix) for key in tensors if key.startswith(self.encoder_prefix)}
        return {name: tensors[key] for key, name in names.items() if name.startswith(("stages.", "stem."))}


def plan_of(source: Mapping | Path) -> NnsslPlan | None:
    """The plan of an nnssl checkpoint, or None where there is none.

    Args:
        source: content of a checkpoint; or the file: the checkpoint (then the plan inside it, or else the one beside
            it) or ``adaptation_plan.json`` itself.

    Raises:
        InputError: a plan for a network or normalisation that is not available here, which is named, or one that is
            not understood.
    """
    if isinstance(source, Path):
        name, content = source.name, _content(source)
    else:
        name, content = "the checkpoint", source
    plan = content.get(PLAN_KEY, content if "architecture_plans" in content else None)
    if not isinstance(plan, Mapping):
        return None
    init = content.get("init_args")
    configuration = init.get("configuration_name") if isinstance(init, Mapping) else None
    try:
        return _read(_plain(plan), name, configuration)
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"the nnssl adaptation plan of {name} is not understood ({type(error).__name__}: {str(error)[:120]}); "
            f"expected architecture_plans, pretrain_plan and key_to_encoder as nnssl writes them"
        ) from error


def _content(path: Path) -> Mapping:
    if path.suffix != ".json":
        from voco.weights.read import read_content

        content = read_content(path)
        if isinstance(content, Mapping) and PLAN_KEY in content:
            return content
        path = path.parent / PLAN_FILE
        if not path.is_file():
            return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); fetch it again") from error
    return content if isinstance(content, Mapping) else {}


def _read(plan: dict, name: str, configuration: str | None) -> NnsslPlan:
    architecture = plan["architecture_plans"]
    class_name = str(architecture["arch_class_name"]).rpartition(".")[2]
    if class_name not in _ARCHS:
        raise InputError(
            f"{name} holds a {class_name}, an nnssl network that is not available here; "
            f"available are {', '.join(_ARCHS)}"
        )
    arch = _ARCHS[class_name]
    arguments = {}
    if class_name not in _PRESETS:
        arguments = _arguments(arch, architecture["arch_kwargs"], class_name)
    key = str(plan["key_to_encoder"])
    if key.rpartition(".")[2] != "stages":
        raise InputError(
            f"{name} keeps its encoder under {key!r}; expected a name that ends in 'stages', as {class_name} has"
        )
    pretrain = plan["pretrain_plan"]
    return NnsslPlan(
        arch=arch,
        arguments=arguments,
        input_spec=_input_spec(ENCODERS[arch].input_spec, plan, _configuration(pretrain, configuration, name), name),
        encoder_prefix=key.removesuffix("stages"),
        stem_keys=tuple(map(str, plan.get("keys_to_in_proj") or ())),
        channels=int(plan.get("pretrain_num_input_channels", 1)),
        class_name=class_name,
        dataset=str(pretrain.get("dataset_name", "")),
    )


def _arguments(arch: str, kwargs: dict, class_name: str) -> dict:
    """Keywords of our encoder from those of the public class, without the ones that are its defaults."""
    for option, expected in {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU"}.items():
        if str(kwargs[option]).rpartition(".")[2] != expected:
            raise InputError(f"{class_name} with {option} {kwargs[option]} is not available here, only with {expected}")
    norm, rectifier = kwargs.get("norm_op_kwargs") or {}, kwargs.get("nonlin_kwargs") or {}
    if not norm.get("affine", False):
        raise InputError(f"{class_name} with a norm without weights is not available here; found {norm}")
    if rectifier.get("negative_slope", 0.01) != 0.01:
        raise InputError(f"{class_name} with another slope than 0.01 is not available here; found {rectifier}")
    for option in ("dropout_op", "squeeze_excitation", "nonlin_first", "bottleneck_channels"):
        if kwargs.get(option):
            raise InputError(f"{class_name} with {option} {kwargs[option]} is not available here")

    stages = kwargs["features_per_stage"]
    count = int(kwargs.get("n_stages", len(stages) if isinstance(stages, list) else 0))
    if not 0 < count <= _MOST_STAGES:
        raise InputError(f"{class_name} with {count} stages is not available here; expected 1 to {_MOST_STAGES}")
    depths = kwargs.get("n_blocks_per_stage", kwargs.get("n_conv_per_stage"))
    values = {
        "features_per_stage": _stages(stages, count, "features_per_stage"),
        "strides": _stages(kwargs["strides"], count, "strides"),
        "kernel_sizes": _stages(kwargs["kernel_sizes"], count, "kernel_sizes"),
        _depths_name(arch): _stages(depths, count, "n_blocks_per_stage"),
        "conv_bias": bool(kwargs.get("conv_bias", False)),
        "norm_eps": float(norm.get("eps", 1e-5)),
    }
    defaults = {key: p.default for key, p in inspect.signature(ENCODERS[arch].build).parameters.items()}
    defaults = {key: (value,) * count if key == "n_conv_per_stage" else value for key, value in defaults.items()}
    return {key: value for key, value in values.items() if value != defaults[key]}


def _depths_name(arch: str) -> str:
    return "n_conv_per_stage" if arch == "nnunet_plain" else "n_blocks_per_stage"


def _stages(value: object, count: int, name: str) -> tuple:
    """One entry per stage: a number, or three where the axes differ."""
    entries = value if isinstance(value, list) else [value] * count
    result = []
    for entry in entries:
        numbers = [int(n) for n in entry] if isinstance(entry, list) else [int(entry)]
        if not all(0 < n <= _MOST[name] for n in numbers):
            raise InputError(f"{name} of an nnssl plan lies between 1 and {_MOST[name]}; found {entry}")
        result.append(numbers[0] if len(set(numbers)) == 1 else tuple(numbers))
    if len(result) != count:
        raise InputError(f"{name} of an nnssl plan has one entry per stage; found {len(result)} for {count} stages")
    return tuple(result)


def _configuration(pretrain: dict, name: str | None, file: str) -> dict:
    """The configuration that was trained: the one the checkpoint names, else the only one, else 1 mm isotropic."""
    configurations = pretrain["configurations"]
    if name in configurations:
        return configurations[name]
    if len(configurations) == 1:
        return next(iter(configurations.values()))
    if "onemmiso" in configurations:
        return configurations["onemmiso"]
    raise InputError(f"the plan of {file} has the configurations {sorted(configurations)} and does not say which it is")


def _input_spec(default: InputSpec, plan: dict, configuration: dict, file: str) -> InputSpec:
    """Geometry and intensities. The axes of a plan are those of its files, slices first, then ``transpose_forward``."""
    order = [int(i) for i in plan["pretrain_plan"].get("transpose_forward", (0, 1, 2))]
    if sorted(order) != [0, 1, 2]:
        raise InputError(f"transpose_forward of an nnssl plan orders three axes; found {order}")

    def canonical(values: list, kind: type) -> tuple:
        if len(values) != 3 or not all(0 < float(v) < 100_000 for v in values):
            raise InputError(f"sizes and spacings of an nnssl plan are three positive numbers; found {values}")
        return tuple(kind(values[order.index(axis)]) for axis in range(3))

    spacing = configuration.get("spacing")
    resampled = configuration.get("spacing_style") != "noresample" and spacing is not None
    patch = configuration.get("patch_size") or plan["recommended_downstream_patchsize"]
    return replace(
        default,
        axes="".join(CANONICAL_AXES[i] for i in order),
        spacing_mm=canonical(spacing, float) if resampled else None,
        size=canonical(patch, int),
        min_size=(1, 1, 1),  # the encoder knows its own
        **_intensities(str(configuration["normalization_schemes"][0]), plan["pretrain_plan"], file),
    )


def _intensities(scheme: str, pretrain: dict, file: str) -> dict:
    """Windows, mean and std; a normalisation by each image's own statistics becomes one by usual ones."""
    whole = nnunet.WHOLE_RANGE
    if scheme == "ZScoreNormalization":
        spec = nnunet.RESENC_SPEC
        return {"windows": spec.windows, "mean": spec.mean, "std": spec.std}
    if scheme == "NoNormalization":  # Hounsfield units as they are
        return {"windows": (whole,), "mean": (-whole[0] / _WHOLE_RANGE,), "std": (1 / _WHOLE_RANGE,)}
    if scheme in ("RescaleTo01", "RescaleTo01Normalization"):
        return {"windows": (whole,), "mean": (0.0,), "std": (1.0,)}
    found = pretrain.get("foreground_intensity_properties_per_channel", {})
    if scheme == "CTNormalization" and "0" in found:
        statistics = {key: float(found["0"][key]) for key in ("percentile_00_5", "percentile_99_5", "mean", "std")}
        low, high = statistics["percentile_00_5"], statistics["percentile_99_5"]
        mean, std = (statistics["mean"] - low) / (high - low), statistics["std"] / (high - low)
        return {"windows": ((low, high),), "mean": (mean,), "std": (std,)}
    raise InputError(
        f"{file} was trained with {scheme}{', without the statistics that it needs' if scheme[:2] == 'CT' else ''}; "
        f"known are ZScoreNormalization, NoNormalization, RescaleTo01, and CTNormalization with "
        f"foreground_intensity_properties_per_channel. Name the encoder and its window yourself"
    )


def _plain(value: object) -> object:
    """Containers as dicts and lists, tensors (which nnssl makes of arrays) as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        if value.numel() > 1000:
            raise InputError(f"an nnssl plan holds a tensor of {value.numel()} values; expected a few numbers")
        return value.tolist()
    return value
