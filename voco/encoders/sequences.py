"""Named networks that read a volume slice by slice and then along the slices: ViPTT-Net, LRCN, 2D-VoCo's CNN-LSTM.

Maps and ``sequence`` are those of the network of the slices (``encoder.slices``, a ``SliceEncoder``); ``pool`` is the
vector that the published classifier takes. Slices may be run in chunks, which changes no result.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.distributed import spans_ranks
from voco.encoders.base import Encoder, register_encoder
from voco.encoders.slices import SliceEncoder
from voco.encoders.spec import PE_WINDOW, InputSpec
from voco.errors import InputError
from voco.losses import full_precision
from voco.sequence import make_sequence_head

if TYPE_CHECKING:
    from voco.weights.report import LoadReport

# With one slice the weights from state to state would have nothing to learn from.
MIN_SLICES = 2
MIN_SIZE = (MIN_SLICES, 32, 32)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIPTT_SPEC = InputSpec(windows=((-1000.0, 400.0),), size=(70, 224, 224), min_size=MIN_SIZE, size_multiple=(1, 32, 32))
LRCN_SPEC = InputSpec(
    windows=((-1350.0, 150.0), PE_WINDOW, (-160.0, 240.0)),  # lung, pulmonary embolism, mediastinum
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    size=(150, 224, 224),
    min_size=MIN_SIZE,
    rgb_mean=IMAGENET_MEAN,
    rgb_std=IMAGENET_STD,
)
# The published input is 8-bit, windowed by the header of its files (centre 50, width 400), and divided by 255. Of the
# two sets that its slice network was pretrained on, the one in Hounsfield units is cut to this window.
VOCO2D_SPEC = InputSpec(windows=((-175.0, 250.0),), size=(48, 192, 192), min_size=MIN_SIZE)
# What belongs to weights; the rest of a spec belongs to the data or to the architecture.
_INTENSITY = ("axes", "windows", "mean", "std", "rgb_mean", "rgb_std")


class SequenceEncoder(Encoder):
    """A 2D network over the slices and a layer along them; a model implements ``_read``.

    Args:
        input_spec: of the volumes; smallest plane and multiples become those of the 2D network.
        model: timm name of the 2D network.
        stem: in front of the 2D network, from the input to its three channels; None where it sees the input itself.
        chunk, norm: see ``voco.encoders.slices.SliceEncoder``.
    """

    pooling = "recurrent"

    def __init__(
        self,
        input_spec: InputSpec,
        model: str,
        *,
        stem: nn.Module | None = None,
        chunk: int | None = None,
        norm: str | None = None,
    ):
        spec = input_spec if stem is None else _colours_of(input_spec)
        slices = SliceEncoder(spec, model, chunk=chunk, norm=norm)
        multiple, smallest = slices.input_spec.size_multiple, slices.input_spec.min_size
        super().__init__(
            replace(input_spec, min_size=(MIN_SLICES, *smallest[1:]), size_multiple=multiple),
            [{**info, "module": f"slices.{info['module']}"} for info in slices.feature_info],
        )
        slices.name = f"slices/{model}"
        self.stem, self.slices = stem, slices
        self.stem_keys = ("stem.weight",) if stem is not None else tuple(f"slices.{key}" for key in slices.stem_keys)

    @property
    def sequence_features(self) -> int:
        """Width of ``sequence``."""
        return self.slices.num_features

    def sequence(self, x: Tensor) -> Tensor:
        """One vector per slice, before the layer along the slices: (B, D, ``sequence_features``)."""
        self._check_input(x)
        return self.slices.sequence(self._colours(x))

    def pool(self, x: Tensor) -> Tensor:
        """What the published classifier takes: (B, ``num_features``), at least float32."""
        return full_precision(self._read(self.sequence(x)))

    def pooled_pyramid(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return self.slices.pooled_pyramid(self._colours(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.slices.set_grad_checkpointing(enable)

    def load_part(self, source: str | Path, *, which: str = "auto") -> LoadReport:
        """Start the network of the slices from weights of its own; all else keeps its values.

        Args:
            source: weights file, tag, Hugging Face id or encoder folder of ``slices/MODEL``: ImageNet, or a pretraining
                by 2D-VoCo. A folder also brings windows, mean and std, unless a stem of ours stands in front of the 2D
                network; published weights do not, since the published models are fed as their own spec says.
            which: see ``voco.weights.load.load_weights``.

        Returns:
            The report on the whole encoder, also kept as ``encoder.load_report``: all but the slices is missing.

        Raises:
            InputError: the source does not fill the network of the slices, or a folder has other input channels;
                the encoder is then as it was.
        """
        from voco.weights.folder import read_config
        from voco.weights.load import load_weights
        from voco.weights.resolve import resolve

        weights = resolve(self.slices.name, "", source)
        spec, config = self.input_spec, read_config(weights.path)
        if config is not None and config["arch"] == self.slices.name and self.stem is None:
            spec = self._fed_as(InputSpec.from_dict(config["input_spec"]), source)
        self.slices.provenance = [weights.source.to_dict()] if weights.source else []
        self.slices.fingerprints = {}
        report = load_weights(self.slices, weights.path, which=which)
        self.input_spec, self.provenance = spec, list(self.slices.provenance)
        self.fingerprints = dict(self.slices.fingerprints)
        self.load_report = self._whole(report)
        return self.load_report

    def _fed_as(self, theirs: InputSpec, source: str | Path) -> InputSpec:
        """Our spec with what belongs to the weights taken from theirs."""
        if theirs.channels != self.input_spec.channels:
            raise InputError(
                f"{source} was trained on the windows {list(theirs.windows)}, {self._label} has "
                f"{list(self.input_spec.windows)}; create it with window={list(theirs.windows)}"
            )
        return replace(self.input_spec, **{key: getattr(theirs, key) for key in _INTENSITY})

    def _whole(self, report: LoadReport) -> LoadReport:
        """A report on the network of the slices as one on the encoder."""
        found = [f"slices.{key}" for key in (*report.loaded, *report.adapted)]
        wanted = [key for key in self.state_dict() if not key.endswith("num_batches_tracked")]
        share = sum(p.numel() for p in self.slices.parameters()) / sum(p.numel() for p in self.parameters())
        return replace(
            report,
            encoder=self.name or type(self).__name__,
            loaded=tuple(f"slices.{key}" for key in report.loaded),
            adapted={f"slices.{key}": rule for key, rule in report.adapted.items()},
            missing=tuple(sorted(set(wanted) - set(found))),
            coverage=report.coverage * share,
        )

    def _read(self, sequence: Tensor) -> Tensor:
        """(B, D, sequence_features) -> (B, num_features)."""
        raise NotImplementedError

    def _colours(self, x: Tensor) -> Tensor:
        return x if self.stem is None else self.stem(x)

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self.slices._maps(self._colours(x))

    def _deepest(self, x: Tensor) -> Tensor:
        return self.slices._deepest(self._colours(x))


class ViPTT(SequenceEncoder):
    """ViPTT-Net: VGG16 over slices, Keras' LSTM along them, a dense layer.

    15,775,568 parameters with ``nn.Linear(1024, 10)`` (UCF50), 15,770,443 with 5 outputs (tuberculosis type). A linear
    1x1x1 convolution makes the three channels of VGG16 from one; there is no ImageNet mean and std, as published: CT
    enters in [0, 1]. (The authors' videos entered in [0, 255]; here they do not.) Initial values of all that is not
    VGG16 are Keras' defaults.

    Source: public code hasibzunair/viptt-net; its layer summary.

    Args:
        input_spec: see ``SequenceEncoder``.
        chunk: slices per pass of VGG16.
    """

    num_features = 1024

    def __init__(self, input_spec: InputSpec, chunk: int | None = None):
        super().__init__(input_spec, "vgg16", stem=nn.Conv3d(input_spec.channels, 3, 1), chunk=chunk)
        self.lstm = make_sequence_head("lstm", self.sequence_features, hidden=256, bias="keras")
        self.dense = nn.Linear(256, self.num_features)
        for layer in (self.stem, self.dense):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _read(self, sequence: Tensor) -> Tensor:
        return F.relu(self.dense(self.lstm(sequence)))


class LRCN(SequenceEncoder):
    """ResNeXt-101 over slices, differences to both neighbours, a bidirectional GRU along them, mean, BatchNorm.

    The 2D baseline of Ke et al. 2023, "Video pretraining advances 3D deep learning on chest CT tasks". There the
    features of the slices were stored once, so that only the rest was trained; ``encoder.slices.requires_grad_(False)``
    with ``norm="frozen"`` is that. The GRU's published dropout of 0.5 acts between layers, and there is one layer: it
    never did anything and is not here. Published code ran the GRU along the batch, which is not repeated.

    The BatchNorm is the one place where cases of a batch touch, in training only.

    Args:
        input_spec: see ``SequenceEncoder``.
        chunk, norm: see ``voco.encoders.slices.SliceEncoder``.
        head_norm: ``batch`` as published, ``layer`` (each case by itself, for batches of one) or ``none``.
    """

    num_features = 512

    def __init__(
        self,
        input_spec: InputSpec,
        chunk: int | None = None,
        norm: str | None = None,
        head_norm: Literal["batch", "layer", "none"] = "batch",
    ):
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
        if head_norm not in norms:
            raise InputError(f"head_norm must be one of {', '.join(norms)}; found {head_norm!r}")
        super().__init__(input_spec, "resnext101_32x8d", chunk=chunk, norm=norm)
        for module in self.slices.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # as torchvision, which was published; timm has 0 at the end of each block
        self.gru = make_sequence_head("gru", 3 * self.sequence_features, hidden=256, bidirectional=True, reduce="mean")
        self.norm = norms[head_norm](self.num_features)

    def _read(self, sequence: Tensor) -> Tensor:
        if (
            isinstance(self.norm, nn.BatchNorm1d)
            and self.norm.training
            and len(sequence) == 1
            and not spans_ranks(self)
        ):
            raise InputError(
                f"{self._label} normalises over the cases of a batch and found one case; train with at least 2 per "
                f"device, or create it with head_norm='layer'"
            )
        return self.norm(self.gru(with_differences(sequence)))


class VoCo2DLSTM(SequenceEncoder):
    """An EfficientNet over slices, a bidirectional LSTM along them, the maximum over slices.

    The trauma classifier that 2D-VoCo is fine-tuned with. Its five outputs are
    ``voco.sequence.MultiOutputHead(256, {"bowel": 1, "extravasation": 1, "kidney": 3, "liver": 3, "spleen": 3})``.

    Source: arXiv 2601.14593 and public code tkz05/2D-VoCo-CT-Classifier.

    Args:
        input_spec: see ``SequenceEncoder``.
        backbone: timm name of the 2D network.
        chunk, norm: see ``voco.encoders.slices.SliceEncoder``.
    """

    num_features = 256

    def __init__(
        self,
        input_spec: InputSpec,
        backbone: str = "efficientnetv2_rw_t",
        chunk: int | None = None,
        norm: str | None = None,
    ):
        super().__init__(input_spec, backbone, chunk=chunk, norm=norm)
        self.lstm = make_sequence_head("bilstm", self.sequence_features, hidden=self.num_features // 2)

    def _read(self, sequence: Tensor) -> Tensor:
        return self.lstm(sequence)


def with_differences(sequence: Tensor) -> Tensor:
    """Slice vectors with what they differ from their neighbours by: (B, D, F) -> (B, D, 3F).

    The vector, then vector minus previous one, then vector minus next one; at the two ends, where there is no such
    neighbour, 0 (as in the public code rajpurkarlab/chest-ct-pretraining).
    """
    steps = sequence.diff(dim=1)
    return torch.cat([sequence, F.pad(steps, (0, 0, 1, 0)), F.pad(-steps, (0, 0, 0, 1))], 2)


def _colours_of(spec: InputSpec) -> InputSpec:
    """The input of a 2D network behind a stem of ours: three channels, nothing left to be done to them."""
    return replace(spec, windows=((0.0, 1.0),) * 3, mean=(0.0,) * 3, std=(1.0,) * 3, rgb_mean=None, rgb_std=None)


@register_encoder(
    "viptt",
    family="sequences",
    part="slices/*",
    input_spec=VIPTT_SPEC,
    summary="ViPTT-Net: VGG16 over slices, LSTM 256, dense 1024",
)
def viptt(input_spec: InputSpec, chunk: int | None = None) -> ViPTT:
    return ViPTT(input_spec, chunk)


@register_encoder(
    "lrcn",
    family="sequences",
    part="slices/*",
    input_spec=LRCN_SPEC,
    summary="ResNeXt-101 over slices, bidirectional GRU 256, three windows",
)
def lrcn(
    input_spec: InputSpec,
    chunk: int | None = None,
    norm: str | None = None,
    head_norm: Literal["batch", "layer", "none"] = "batch",
) -> LRCN:
    return LRCN(input_spec, chunk, norm, head_norm)


@register_encoder(
    "voco2d_lstm",
    family="sequences",
    part="slices/*",
    input_spec=VOCO2D_SPEC,
    summary="2D-VoCo: EfficientNet (or any 2D network of timm) over slices, bidirectional LSTM 128, maximum",
)
def voco2d_lstm(
    input_spec: InputSpec,
    backbone: str = "efficientnetv2_rw_t",
    chunk: int | None = None,
    norm: str | None = None,
) -> VoCo2DLSTM:
    return VoCo2DLSTM(input_spec, backbone, chunk, norm)
