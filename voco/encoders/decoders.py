"""Encoders that bring the decoder of a segmentation network along: its last map as features of a volume.

A decoder is asked for with ``decoder=True`` and is read from files of whole segmentation networks (VoComni, SuPreM,
MONAI's own, nnU-Net). Parameter names are those of the networks, so that their files fit by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from types import MappingProxyType

import torch
from torch import Tensor, nn

from voco.encoders.base import Encoder, _mean
from voco.encoders.nnunet import NNUNetEncoder, PlainConvEncoder, ResidualConvEncoder, Stack, per_stage
from voco.encoders.spec import InputSpec
from voco.encoders.swinunetr import SwinUNETREncoder


class WithDecoder(Encoder):
    """What an encoder with a decoder offers beside the interface of every encoder; a family implements ``_decoded``.

    Maps, ``pool`` and all else are those of the encoder alone, and cost what they cost there: the decoder runs in the
    two calls below only.
    """

    @property
    def decoder_features(self) -> int:
        """Width of ``pooled_decoder``: that of the first map, which the last of the decoder has again."""
        return self.feature_info[0]["num_chs"]

    def forward_decoder(self, x: Tensor) -> Tensor:
        """Last decoder map (B, F, D, H, W) of a prepared tensor, full resolution, canonical axes."""
        self._check_input(x)
        return self._canonical(self._decoded(x))

    def pooled_decoder(self, x: Tensor) -> Tensor:
        """Average of the last decoder map over space: (B, ``decoder_features``), at least float32.

        The last map, since the segmentation layer reads this one alone, a voxel at a time: whatever the network was
        taught about tissue is linear in it, and all coarser maps have gone into it. Its average, because that makes a
        vector of a map of any size, and because VoCo's authors classify so (the CC-CCII recipe of their public code:
        whole SwinUNETR, average, one linear layer). Every channel has been normalised over the volume before its last
        rectifier; the average says how its values are spread, not how high they are.
        """
        self._check_input(x)
        return _mean(self._decoded(x), (2, 3, 4))

    def _decoded(self, x: Tensor) -> Tensor:
        """Last decoder map in the network's own axes."""
        raise NotImplementedError


class SwinUNETRWithDecoder(WithDecoder, SwinUNETREncoder):
    """The whole of MONAI's SwinUNETR but its last 1x1x1 layer; arguments as ``SwinUNETREncoder``."""

    optional_parts = MappingProxyType({"decoder": r"decoder\d\."})

    def __init__(self, input_spec: InputSpec, feature_size: int, *args, **kwargs):
        from monai.networks.blocks import UnetrUpBlock

        super().__init__(input_spec, feature_size, *args, **kwargs)
        for number, (wide, narrow) in {5: (16, 8), 4: (8, 4), 3: (4, 2), 2: (2, 1), 1: (1, 1)}.items():
            block = UnetrUpBlock(
                spatial_dims=3,
                in_channels=wide * feature_size,
                out_channels=narrow * feature_size,
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name="instance",
                res_block=True,
            )
            self.add_module(f"decoder{number}", block)

    def _decoded(self, x: Tensor) -> Tensor:
        hidden = self._hidden_states(x)
        *skips, m = self._blocks(x, hidden)
        blocks = (self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1)
        for block, skip in zip(blocks, (hidden[3], *reversed(skips))):
            m = self._run(block, m, skip)
        return m


class _Decoder(nn.Module):
    """Tensors of nnU-Net's ``UNetDecoder``; the encoder runs them step by step.

    Args:
        widths, steps, kernels: of the encoder, per stage.
        counts: convolutions per stage, deepest first, one stage less than the encoder has.
        bias: whether convolutions have a bias; eps: of the instance normalisation.
    """

    def __init__(self, widths: Sequence[int], steps, kernels, counts: Sequence[int], bias: bool, eps: float):
        super().__init__()
        below = list(reversed(range(1, len(widths))))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(widths[i], widths[i - 1], steps[i], steps[i], bias=bias) for i in below
        )
        self.stages = nn.ModuleList(
            Stack(2 * widths[i - 1], widths[i - 1], kernels[i - 1], (1, 1, 1), count, bias, eps)
            for i, count in zip(below, counts)
        )


class _NNUNetWithDecoder(WithDecoder, NNUNetEncoder):
    """What both nnU-Nets share: transposed convolution, skip beside it, convolutions; from the deepest map up.

    Args:
        n_conv_per_stage_decoder: convolutions of the decoder's stages, deepest first.

    Others as for the encoder alone. Transposed convolutions undo a stride only where it left nothing over, so
    ``prepare`` pads to multiples of the total strides.
    """

    optional_parts = MappingProxyType({"decoder": r"decoder\."})

    def __init__(
        self,
        input_spec: InputSpec,
        *args,
        n_conv_per_stage_decoder: int | Sequence[int],
        conv_bias: bool,
        norm_eps: float,
        **kwargs,
    ):
        super().__init__(input_spec, *args, conv_bias=conv_bias, norm_eps=norm_eps, **kwargs)
        total = self.feature_info[-1]["reduction"]
        multiple = tuple(lcm(*pair) for pair in zip(self.input_spec.size_multiple, total))
        self.input_spec = replace(self.input_spec, size_multiple=multiple)
        widths = [info["num_chs"] for info in self.feature_info]
        counts = per_stage(n_conv_per_stage_decoder, len(widths) - 1, "n_conv_per_stage_decoder")
        self.decoder = _Decoder(widths, self._steps, self._kernels, counts, conv_bias, norm_eps)

    def _decoded(self, x: Tensor) -> Tensor:
        *skips, m = self._maps(x)
        for up, stage, skip in zip(self.decoder.transpconvs, self.decoder.stages, reversed(skips)):
            m = self._run(stage, torch.cat((self._run(up, m), skip), 1))
        return m


class PlainConvUNet(_NNUNetWithDecoder, PlainConvEncoder):
    """nnU-Net's plain network; see ``PlainConvEncoder`` for the arguments."""


class ResidualEncoderUNet(_NNUNetWithDecoder, ResidualConvEncoder):
    """nnU-Net's network with a residual encoder; see ``ResidualConvEncoder`` for the arguments."""
